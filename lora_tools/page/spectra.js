// Spectra: the singular values of each projection, as a median within its range or line by line.
const spectra = { shown: new Set(), relative: true, each: false };
const groups = data.columns
  .map((name, column) => ({
    name,
    column,
    members: data.modules.filter((m) => m.column === column && m.sigma?.some((s) => s > 0)),
  }))
  .filter(({ members }) => members.length);

function heights({ sigma }) {
  // Zeros and what rounding made of them have no place on a logarithmic axis.
  const unit = spectra.relative ? sigma[0] : 1;
  return sigma.map((s) => (s > 1e-12 * sigma[0] ? s / unit : null));
}

function summary(members) {
  const curves = members.map(heights);
  const length = Math.max(...curves.map((curve) => curve.length));
  const at = { x: [], low: [], middle: [], high: [] };
  for (let n = 0; n < length; n++) {
    const values = curves.map((curve) => curve[n] ?? null).filter((y) => y !== null).sort((x, y) => x - y);
    if (!values.length) continue;
    at.x.push(n + 1);
    at.low.push(values[0]);
    at.middle.push(values[(values.length - 1) >> 1]);
    at.high.push(values.at(-1));
  }
  return at;
}

function curves(group, n) {
  const line = { color: hue(n), dash: dash(n), width: 2 };
  const many = group.members.length > 1;
  if (spectra.each || !many) {
    const [x, y, text] = [[], [], []];
    for (const member of group.members) {
      heights(member).forEach((value, index) => {
        x.push(index + 1);
        y.push(value);
        text.push(plain(member.name));
      });
      x.push(null);
      y.push(null);
      text.push("");
    }
    line.width = group.members.length > 8 ? 0.8 : 1.6;
    const opacity = group.members.length > 8 ? 0.6 : 1;
    const mode = Math.max(...group.members.map(({ sigma }) => sigma.length)) > 1 ? "lines" : "markers";
    return [{ type: "scatter", mode, x, y, text, line, marker: { color: line.color }, opacity, hovertemplate: "<b>%{text}</b><br>σ number %{x}: %{y:.4g}<extra></extra>" }];
  }
  const { x, low, middle, high } = summary(group.members);
  const edge = { type: "scatter", mode: "lines", x, line: { width: 0, color: hue(n) }, hoverinfo: "skip" };
  const name = `${plain(group.name)} (${group.members.length})`;
  const text = middle.map((y, k) =>
    [
      `<b>${name}</b>`,
      `σ number ${x[k]}: median ${number(y)}`,
      `range ${number(low[k])} – ${number(high[k])}`,
    ].join("<br>"),
  );
  return [
    { ...edge, y: high },
    { ...edge, y: low, fill: "tonexty", fillcolor: `${hue(n)}1f` },
    {
      type: "scatter", mode: x.length > 1 ? "lines" : "markers", x, y: middle, text, line, marker: { color: line.color },
      hovertemplate: "%{text}<extra></extra>",
    },
  ];
}

function drawSpectra() {
  const shown = groups.flatMap((group, n) => (spectra.shown.has(n) ? [[group, n]] : []));
  // Bands beneath all lines.
  const traces = shown.flatMap(([group, n]) => curves(group, n));
  traces.sort((x, y) => (y.line.width === 0) - (x.line.width === 0));
  const host = element("spectra");
  const most = shown.flatMap(([{ members }]) => members).reduce((n, { sigma }) => Math.max(n, sigma.length), 1);
  const edge = Math.max(0.5, most / 100);
  const values = traces.flatMap(({ y }) => y).filter((y) => y > 0);
  const extent = (least, y) => [Math.min(least[0], y), Math.max(least[1], y)];
  const [lowest, highest] = values.reduce(extent, [Infinity, 0]);
  const decades = Math.log10(highest / lowest);
  Plotly.react(host, traces, layout({
    width: host.clientWidth,
    height: host.clientWidth < 600 ? 300 : 400,
    margin: { l: 62, r: 12, t: 12, b: 46 },
    hovermode: "closest",
    xaxis: axis({ title: "number of the singular value", showgrid: false, range: [1 - edge, most + edge], ...(most < 12 ? { dtick: 1 } : {}), tickformat: "d" }),
    yaxis: axis({ title: spectra.relative ? "σ / σ₁" : "σ", type: "log", exponentformat: "power", ...(decades > 1.5 ? { dtick: Math.ceil(decades / 8) } : decades > 0.7 ? { dtick: "D2" } : {}) }),
  }), CONFIG);
  for (const chip of element("groups").children) {
    chip.setAttribute("aria-pressed", spectra.shown.has(+chip.value));
    chip.style.setProperty("--line", hue(+chip.value));
  }
  const many = shown.some(([group]) => group.members.length > 1);
  element("spectra-note").textContent = !shown.length
    ? "Choose a projection."
    : many && !spectra.each
      ? "A line is the median of a projection's modules, the area around it their range."
      : "";
}

function startSpectra() {
  if (!element("spectra")) return;
  if (!groups.length) {
    element("spectra-note").textContent = "No module has singular values to show: all are zero or not finite.";
    return;
  }
  groups.forEach(({ name, members }, n) => {
    const chip = document.createElement("button");
    const label = document.createElement("span");
    chip.type = "button";
    chip.value = n;
    chip.title = `${name}: ${members.length} modules`;
    label.textContent = name;
    chip.append(label);
    chip.addEventListener("click", () => {
      if (!spectra.shown.delete(n)) spectra.shown.add(n);
      drawSpectra();
    });
    element("groups").append(chip);
    if (n < 7) spectra.shown.add(n);
  });
  element("all-groups").hidden = element("no-groups").hidden = groups.length === 1;
  element("each").parentElement.hidden = groups.every(({ members }) => members.length === 1);
  const all = (some) => () => {
    spectra.shown = new Set(some);
    drawSpectra();
  };
  element("all-groups").addEventListener("click", all(groups.keys()));
  element("no-groups").addEventListener("click", all([]));
  element("each").addEventListener("change", () => {
    spectra.each = element("each").checked;
    drawSpectra();
  });
  switches("spectra", (scale) => {
    spectra.relative = scale === "relative";
    drawSpectra();
  });
  charts.push(drawSpectra);
  drawSpectra();
}
