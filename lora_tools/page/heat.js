// The heat map: layers from left to right, projections from top to bottom.
const has = (key) => data.modules.some((module) => module[key] !== null);
const METRICS = [
  ["norm", "‖ΔW‖", (m) => m.norm],
  ["ratio", "‖ΔW‖ / ‖W‖", (m) => m.ratio],
  ["sigma_max", "σ₁", (m) => m.sigma_max],
  ["stable_rank", "stable rank", (m) => m.stable_rank],
  ["effective_rank", "effective rank", (m) => m.effective_rank],
  ["sigma", "energy kept at rank …", (m) => keptEnergy(m)],
  ...[["0.9", "90 %"], ["0.95", "95 %"], ["0.99", "99 %"], ["0.999", "99.9 %"]].map(([share, text]) => [
    "ranks", `rank for ${text} of the energy`, (m) => m.ranks?.[share] ?? null,
  ]),
  ["rank", "rank", (m) => m.rank],
  ["scale", "scale", (m) => m.scale],
  ["params", "parameters", (m) => m.params],
].filter(([key]) => has(key));

// Viridis, which lies evenly before the eye and keeps its order for the colour-blind and in grey.
const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];

function keptEnergy({ sigma }) {
  if (!sigma) return null;
  const squares = sigma.map((s) => s * s);
  const sum = (values) => values.reduce((x, y) => x + y, 0);
  const whole = sum(squares);
  return whole > 0 ? sum(squares.slice(0, +element("kept-rank").value)) / whole : null;
}

const odd = ({ state }) => (state === null || state === "finite" ? "" : state);

function drawHeat() {
  const [key, title, value] = METRICS[+element("metric").value];
  const kept = key === "sigma";
  element("kept").hidden = !kept;
  element("kept-value").textContent = element("kept-rank").value;
  const name = kept ? `energy kept at rank ${element("kept-rank").value}` : title;
  const write = kept || key === "ratio" ? percent : number;

  const empty = (fill) => data.columns.map(() => data.rows.map(() => fill));
  const [z, hover, values] = [empty(null), empty(""), []];
  const marks = { x: [], y: [], text: [] };
  for (const module of data.modules) {
    const found = value(module);
    z[module.column][module.row] = found;
    hover[module.column][module.row] =
      `<b>${plain(module.name)}</b><br>${name}: ${write(found)}${odd(module) ? `, ${odd(module)}` : ""}`;
    if (found !== null) values.push(found);
    if (odd(module)) {
      marks.x.push(module.row);
      marks.y.push(module.column);
      marks.text.push(odd(module) === "zero" ? "0" : "×");
    }
  }
  const positive = values.filter((x) => x > 0);
  const [least, most] = positive.length ? [Math.min(...positive), Math.max(...positive)] : [0, 0];
  const log = !kept && most / least > 50;
  const [low, high] = log
    ? [Math.log10(least), Math.log10(most)]
    : kept
      ? [Math.min(0.999, ...values), 1]
      : least < most
        ? [Math.min(...values), most]
        : [most - 1, most + 1];
  const scale = log ? z.map((row) => row.map((x) => (x > 0 ? Math.log10(x) : null))) : z;

  const host = element("heat");
  host.classList.toggle("long", data.columns.length > 60);
  const narrow = host.clientWidth < 600;
  const letters = Math.max(...data.columns.map((column) => Math.min(column.length, narrow ? 16 : 32)));
  const left = 16 + 7 * letters;
  const right = 74;
  const room = host.clientWidth - left - right;
  const cell = Math.min(84, Math.max(room / data.rows.length, narrow ? 7 : 4.5));
  const height = data.columns.length > 40 ? 16 : data.columns.length > 3 ? 24 : 36;
  const upright = data.labels.every((label) => label.length <= 3);
  const longest = Math.max(...data.labels.map((label) => label.length));
  const below = upright ? 46 : 34 + 6.6 * longest;
  const step = Math.ceil((upright ? 22 : 13) / cell);
  const ticks = data.labels.map((_, n) => n).filter((n) => n % step === 0);
  const trim = (label) => (label.length > letters ? `…${label.slice(1 - letters)}` : label);
  const gap = cell > 9 ? 1.5 : cell > 5 ? 0.5 : 0;
  const wide = data.columns.length > 3 && least < most;

  const traces = [{
    type: "heatmap",
    z: scale,
    text: hover,
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: false,
    xgap: gap,
    ygap: gap,
    colorscale: VIRIDIS.map((colour, n) => [n / 9, colour]),
    zmin: low,
    zmax: high,
    colorbar: {
      thickness: 10,
      outlinewidth: 0,
      len: 1,
      lenmode: "fraction",
      xpad: 12,
      nticks: 5,
      tickfont: { color: ink().soft, size: 11 },
      ...(log ? powers(least, most) : kept || key === "ratio" ? { tickformat: ".3~p" } : { tickformat: key === "params" ? ".3~s" : ".3~g" }),
    },
    showscale: wide,
  }];
  if (cell >= 46) {
    // A cell is named where there is room; its ink is what stands out from its colour.
    const all = data.modules.filter((module) => value(module) !== null && !odd(module));
    const span = high - low || 1;
    const bright = (module) => (scale[module.column][module.row] - low) / span > 0.55;
    traces.push({
      type: "scatter", mode: "text", hoverinfo: "skip",
      x: all.map((module) => module.row),
      y: all.map((module) => module.column),
      text: all.map((module) => write(value(module))),
      textfont: { size: 11, color: all.map((module) => (bright(module) ? "#1d2129" : "#ffffff")) },
    });
  }
  if (marks.x.length) {
    traces.push({
      type: "scatter", mode: "text", ...marks, hoverinfo: "skip",
      textfont: { color: ink().mark, size: Math.min(13, Math.max(9, cell)) },
    });
  }
  const width = Math.round(left + right + cell * data.rows.length);
  Plotly.react(host, traces, layout({
    width: Math.max(width, 160),
    height: Math.round(12 + below + height * data.columns.length),
    margin: { l: left, r: right, t: 12, b: below },
    xaxis: axis({
      title: upright && cell * data.rows.length > 120 ? `layer${data.stem ? ` of ${plain(data.stem)}` : ""}` : "",
      tickvals: ticks,
      ticktext: ticks.map((n) => plain(data.labels[n])),
      tickangle: upright ? 0 : -90,
      range: [-0.5, data.rows.length - 0.5],
      showgrid: false,
      automargin: false,
    }),
    yaxis: axis({
      title: "",
      tickvals: data.columns.map((_, n) => n),
      ticktext: data.columns.map((column) => plain(trim(column))),
      range: [data.columns.length - 0.5, -0.5],
      showgrid: false,
      automargin: false,
    }),
  }), CONFIG);
  element("heat-note").textContent = [
    least === most && data.modules.length > 1 ? `All of them: ${write(most)}.` : "",
    log ? "Colours follow the logarithm." : "",
    marks.text.includes("×") ? "× holds NaN or Inf." : "",
    marks.text.includes("0") ? "0 is an update of zero." : "",
    data.modules.length > 1 ? "A click shows the module in the table." : "",
  ].filter(Boolean).join(" ");
}

function powers(least, most) {
  const [low, high] = [Math.log10(least), Math.log10(most)];
  const steps = high - low > 3 ? [1] : [1, 3];
  const values = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const step of steps) values.push(step * 10 ** power);
  }
  const within = values.filter((x) => x >= least && x <= most);
  return { tickvals: within.map(Math.log10), ticktext: within.map(number) };
}

function startHeat() {
  if (!data.modules.length) return;
  METRICS.forEach(([, title], n) => element("metric").add(new Option(title, n)));
  const most = Math.max(...data.modules.map((module) => module.sigma?.length ?? 1));
  element("kept-rank").max = most;
  element("kept-rank").value = data.suggested ?? Math.max(1, Math.floor(most / 2));
  element("metric").addEventListener("change", drawHeat);
  element("kept-rank").addEventListener("input", drawHeat);
  charts.push(drawHeat);
  drawHeat();
  element("heat").on("plotly_click", ({ points }) => {
    const { x, y } = points[0];
    const found = data.modules.find((module) => module.row === x && module.column === y);
    if (found) showModule(found.name);
  });
}
