// The shrink curve: the error of the whole adapter at lower ranks.
let across = "rank_after";

function drawShrink() {
  const rows = data.ranks;
  const size = across === "bytes_after";
  const x = rows.map((row) => row[across]);
  const trace = (key, name, n) => ({
    type: "scatter",
    mode: "lines+markers",
    name,
    x,
    y: rows.map((row) => row[key]),
    text: rows.map((row) => `<b>${name}</b><br>rank ${row.rank_after}, ${bytes(row.bytes_after)}<br>error ${percent(row[key])}`),
    hovertemplate: "%{text}<extra></extra>",
    line: { color: hue(n), width: 2, dash: n ? "dash" : "solid" },
    marker: { size: 7, symbol: n ? "diamond" : "circle" },
  });
  const { soft, rule } = ink();
  const chosen = rows.find((row) => row.rank_after === data.suggested);
  const host = element("shrink");
  Plotly.react(host, [trace("optimal_error", "one rank for all", 0), trace("allocated_error", "ranks allocated", 1)], layout({
    width: host.clientWidth,
    height: host.clientWidth < 600 ? 300 : 340,
    margin: { l: 62, r: 16, t: 34, b: 46 },
    showlegend: true,
    legend: { orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
    hovermode: "closest",
    xaxis: axis({ title: size ? "size of the file" : "rank", type: "log", showgrid: false, tickvals: x, ticktext: x.map((value) => (size ? bytes(value) : value)), tickangle: 0 }),
    yaxis: axis({ title: "relative error ‖ΔW − ΔW′‖ / ‖ΔW‖", tickformat: ".0%", rangemode: "tozero" }),
    shapes: chosen
      ? [{ type: "line", x0: chosen[across], x1: chosen[across], yref: "paper", y0: 0, y1: 1, line: { color: rule, width: 2 }, layer: "below" }]
      : [],
    annotations: chosen
      ? [{ x: Math.log10(chosen[across]), y: 1, yref: "paper", yanchor: "top", xanchor: "left", xshift: 4, text: "suggested", showarrow: false, font: { color: soft, size: 11.5 } }]
      : [],
  }), CONFIG);
}

function startShrink() {
  if (!data.ranks.length) return;
  switches("shrink", (key) => {
    across = key;
    drawShrink();
  });
  charts.push(drawShrink);
  drawShrink();
}
