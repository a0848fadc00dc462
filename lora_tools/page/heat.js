// The heat map: layers from left to right, projections from top to bottom.
const has = (key) => data.modules.some((module) => module[key] !== null);
const METRICS = [
  ["norm", "‖ΔW‖", (m) => m.norm],
  ["relative_norm", "‖ΔW‖ / ‖W‖", (m) => m.relative_norm],
  ["sigma_max", "σ₁", (m) => m.sigma_max],
  ["stable_rank", "stable rank", (m) => m.stable_rank],
  ["effective_rank", "effective rank", (m) => m.effective_rank],
  ["sigma", "energy kept at rank …", (m) => keptEnergy(m)],
  ...[["0.9", "90 %"], ["0.95", "95 %"], ["0.99", "99 %"], ["0.999", "99.9 %"]].map(([share, text]) => [
    "energy_ranks", `rank for ${text} of the energy`, (m) => m.energy_ranks?.[share] ?? null,
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

function grid(value, say) {
  const empty = (fill) => data.columns.map(() => data.rows.map(() => fill));
  const [z, hover] = [empty(null), empty("")];
  for (const module of data.modules) {
    const { row, column, name } = module;
    z[column][row] = value(module);
    hover[column][row] = `<b>${plain(name)}</b><br>${say(module)}${odd(module) ? `, ${odd(module)}` : ""}`;
  }
  return { z, hover };
}

// From which value to which the colours run, and whether by their logarithm.
function range(values, kept) {
  const least = values.reduce((x, y) => Math.min(x, y), Infinity);
  const most = values.reduce((x, y) => Math.max(x, y), -Infinity);
  const smallest = values.reduce((x, y) => (y > 0 ? Math.min(x, y) : x), Infinity);
  const log = !kept && least >= 0 && most > 50 * smallest;
  const flat = !(least < most);
  const ends = kept ? [Math.min(least, 0.999), 1] : flat ? [most - 1, most + 1] : [least, most];
  return { log, flat, most, ends: log ? [Math.log10(smallest), Math.log10(most)] : ends };
}

// How wide and high a cell is, and what room the names around the map take.
function measures(host) {
  const narrow = host.clientWidth < 600;
  const letters = Math.max(...data.columns.map((column) => Math.min(column.length, narrow ? 16 : 32)));
  const longest = Math.max(...data.labels.map((label) => label.length));
  const upright = longest <= 3;
  const [left, right] = [16 + 7 * letters, 74];
  const room = (host.clientWidth - left - right) / data.rows.length;
  const cell = Math.min(84, Math.max(room, narrow ? 7 : 4.5));
  const height = data.columns.length > 40 ? 16 : data.columns.length > 3 ? 24 : 36;
  const below = upright ? 46 : 34 + 6.6 * longest;
  return { letters, upright, left, right, cell, height, below };
}

function axes({ letters, upright, cell }) {
  const step = Math.ceil((upright ? 22 : 13) / cell);
  const ticks = data.labels.map((_, n) => n).filter((n) => n % step === 0);
  const trim = (label) => (label.length > letters ? `…${label.slice(1 - letters)}` : label);
  const title = `layer${data.prefix ? ` of ${plain(data.prefix)}` : ""}`;
  const bare = { showgrid: false, automargin: false };
  return {
    xaxis: axis({
      ...bare,
      title: upright && cell * data.rows.length > 120 ? title : "",
      tickvals: ticks,
      ticktext: ticks.map((n) => plain(data.labels[n])),
      tickangle: upright ? 0 : -90,
      range: [-0.5, data.rows.length - 0.5],
    }),
    yaxis: axis({
      ...bare,
      title: "",
      tickvals: data.columns.map((_, n) => n),
      ticktext: data.columns.map((column) => plain(trim(column))),
      range: [data.columns.length - 0.5, -0.5],
    }),
  };
}

function labels(modules, text, font) {
  return {
    type: "scatter",
    mode: "text",
    hoverinfo: "skip",
    x: modules.map(({ row }) => row),
    y: modules.map(({ column }) => column),
    text: modules.map(text),
    textfont: font,
  };
}

function drawHeat() {
  const [key, title, value] = METRICS[+element("metric").value];
  const kept = key === "sigma";
  element("kept").hidden = !kept;
  element("kept-value").textContent = element("kept-rank").value;
  const name = kept ? `energy kept at rank ${element("kept-rank").value}` : title;
  const write = kept || key === "relative_norm" ? percent : number;

  const { z, hover } = grid(value, (module) => `${name}: ${write(value(module))}`);
  const { log, flat, most, ends } = range(z.flat().filter((x) => x !== null), kept);
  const shade = (x) => (log ? (x > 0 ? Math.log10(x) : null) : x);
  const host = element("heat");
  host.classList.toggle("long", data.columns.length > 60);
  const size = measures(host);
  const { cell, height, left, right, below } = size;

  const gap = cell > 9 ? 1.5 : cell > 5 ? 0.5 : 0;
  const format = key === "params" ? ".3~s" : write === percent ? ".3~p" : ".3~g";
  const traces = [{
    type: "heatmap",
    z: z.map((row) => row.map(shade)),
    text: hover,
    hovertemplate: "%{text}<extra></extra>",
    hoverongaps: false,
    xgap: gap,
    ygap: gap,
    colorscale: VIRIDIS.map((colour, n) => [n / 9, colour]),
    zmin: ends[0],
    zmax: ends[1],
    showscale: data.columns.length > 3 && !flat,
    colorbar: {
      thickness: 10,
      outlinewidth: 0,
      xpad: 12,
      nticks: 5,
      tickfont: { color: ink().soft, size: 11 },
      ...(log ? powers(...ends) : { tickformat: format }),
    },
  }];
  const spoiled = data.modules.filter(odd);
  if (cell >= 46) {
    // A cell is labelled where there is room, in the ink that stands out from its colour.
    const sound = data.modules.filter((module) => value(module) !== null && !odd(module));
    const bright = (module) => (shade(value(module)) - ends[0]) / (ends[1] - ends[0]) > 0.55;
    const color = sound.map((module) => (bright(module) ? "#1d2129" : "#ffffff"));
    traces.push(labels(sound, (module) => write(value(module)), { size: 11, color }));
  }
  const filled = (module) => value(module) !== null && !log;
  const font = {
    color: spoiled.map((module) => (filled(module) ? "#ffffff" : ink().mark)),
    size: Math.min(13, Math.max(9, cell)),
  };
  traces.push(labels(spoiled, (module) => (odd(module) === "zero" ? "0" : "×"), font));

  Plotly.react(host, traces, layout({
    width: Math.max(160, Math.round(left + right + cell * data.rows.length)),
    height: Math.round(12 + below + height * data.columns.length),
    margin: { l: left, r: right, t: 12, b: below },
    ...axes(size),
  }), CONFIG);
  element("heat-note").textContent = [
    flat && data.modules.length > 1 && most > -Infinity ? `All of them: ${write(most)}.` : "",
    log ? "Colours follow the logarithm." : "",
    spoiled.some((module) => odd(module) !== "zero") ? "× holds NaN or Inf." : "",
    spoiled.some((module) => odd(module) === "zero") ? "0 is an update of zero." : "",
    data.modules.length > 1 ? "A click shows the module in the table." : "",
  ].filter(Boolean).join(" ");
}

function powers(low, high) {
  const steps = high - low > 3 ? [1] : [1, 3];
  const values = [];
  for (let power = Math.floor(low); power <= high; power++) {
    for (const step of steps) values.push(step * 10 ** power);
  }
  const within = values.filter((x) => Math.log10(x) >= low && Math.log10(x) <= high);
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
