// The table of modules: sorted by a click on a title, filtered by words, kind and remark.
const table = element("table");
const lines = [...table.tBodies[0].rows].map((row) => ({
  row,
  name: row.cells[0].dataset.value,
  lower: row.cells[0].dataset.value.toLowerCase(),
  kind: row.dataset.kind,
  flags: JSON.parse(row.dataset.flags),
  values: [...row.cells].map((cell) => cell.dataset.value ?? ""),
}));
const collator = new Intl.Collator("en", { numeric: true });

function sortBy(title) {
  const column = title.cellIndex;
  const numeric = lines.every(({ values }) => values[column] === "" || Number.isFinite(+values[column]));
  // Numbers are looked at for the largest first, names from A on.
  const before = title.getAttribute("aria-sort");
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = before === first ? other : first;
  for (const th of table.tHead.rows[0].cells) {
    if (th.hasAttribute("aria-sort")) th.setAttribute("aria-sort", th === title ? order : "none");
  }
  const sign = order === "ascending" ? 1 : -1;
  const compare = numeric ? (x, y) => x - y : collator.compare;
  lines.sort((a, b) => {
    const x = a.values[column];
    const y = b.values[column];
    // What has no value comes last either way.
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * compare(x, y);
  });
  table.tBodies[0].append(...lines.map(({ row }) => row));
}

function filter() {
  const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const kind = element("kind")?.value ?? "";
  const flag = element("flag")?.value ?? "";
  let shown = 0;
  for (const line of lines) {
    const fits =
      words.every((word) => line.lower.includes(word)) &&
      (!kind || line.kind === kind) &&
      (!flag || line.flags.includes(flag));
    line.row.hidden = !fits;
    shown += fits;
  }
  const all = `${lines.length.toLocaleString("en")} module${lines.length === 1 ? "" : "s"}`;
  element("count").textContent = shown === lines.length ? all : `${shown.toLocaleString("en")} of ${all}`;
  element("nothing").hidden = shown > 0;
}

function showModule(name) {
  element("filter").value = name.toLowerCase();
  for (const id of ["kind", "flag"]) if (element(id)) element(id).value = "";
  filter();
  element("modules").scrollIntoView({ block: "start" });
}

table.tHead.addEventListener("click", (event) => {
  const title = event.target.closest("th[aria-sort]");
  if (title) sortBy(title);
});
element("filter").addEventListener("input", filter);
for (const id of ["kind", "flag"]) element(id)?.addEventListener("change", filter);
