// Light or dark: as the system has it until the button is pressed. The charts follow.
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const charts = [];
const system = matchMedia("(prefers-color-scheme: dark)");

function dark() {
  if (matchMedia("print").matches) return false;
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : system.matches;
}

function ink() {
  return dark()
    ? { text: "#e4e6eb", soft: "#9aa2b1", rule: "#2d323b", card: "#1b1e24", mark: "#ff8a80" }
    : { text: "#1d2129", soft: "#5d6470", rule: "#e4e5e8", card: "#ffffff", mark: "#b3261e" };
}

// Blue, orange, green, purple, sky, vermilion, yellow, grey: told apart by the colour-blind
// (Okabe and Ito 2008); darkened or lightened for the ground.
const HUES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#a64d86", "#3a9ad9", "#8a6d00", "#5b3f99", "#6b7280"],
  dark: ["#56a8e8", "#f28e4b", "#35c79b", "#e08cc0", "#8fd0ff", "#e8c547", "#b39ddb", "#a3abb8"],
};
const DASHES = ["solid", "dash", "dot", "dashdot"];
const hue = (n) => HUES[dark() ? "dark" : "light"][n % 8];
const dash = (n) => DASHES[Math.floor(n / 8) % 4];

// plotly reads a little HTML in what it shows; names are text.
const plain = (text) =>
  String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const number = (x) =>
  x === null || x === undefined
    ? "–"
    : Number.isInteger(x)
      ? x.toLocaleString("en")
      : String(Number(x.toPrecision(4)));

const bytes = (n) => {
  const power = n < 1000 ? 0 : Math.min(3, Math.floor(Math.log10(n) / 3));
  return `${Number((n / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB"][power]}`;
};

const percent = (x) => (x === null ? "–" : `${Number((100 * x).toPrecision(3))} %`);

const CONFIG = { displayModeBar: false, displaylogo: false };

function axis(more) {
  const { soft, rule } = ink();
  return {
    gridcolor: rule,
    linecolor: rule,
    tickcolor: rule,
    zeroline: false,
    tickfont: { color: soft, size: 11.5 },
    automargin: true,
    fixedrange: true,
    ...more,
    title: { text: more.title, font: { color: soft, size: 12.5 }, standoff: 10 },
  };
}

function layout(more) {
  const { text, rule, card } = ink();
  const family = getComputedStyle(document.body).fontFamily;
  return {
    font: { family, color: text, size: 12.5 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { bgcolor: card, bordercolor: rule, align: "left", namelength: -1, font: { color: text, family } },
    showlegend: false,
    ...more,
  };
}

function redraw() {
  for (const draw of charts) draw();
}

function switches(name, then) {
  const buttons = [...document.querySelectorAll(`[data-${name}]`)];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", other === button);
      then(button.dataset[name]);
    });
  }
}

element("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = dark() ? "light" : "dark";
  redraw();
});
system.addEventListener("change", redraw);
addEventListener("beforeprint", redraw);
addEventListener("afterprint", redraw);
