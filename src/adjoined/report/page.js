"use strict";
// Draws every figure of the page in its place, in the colours of the page, light or dark.
(async () => {
  const root = document.documentElement;
  const read = (id) => document.getElementById(id).textContent;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touched = !matchMedia("(hover: hover)").matches || matchMedia("(max-width: 760px)").matches;
  const plots = [];

  async function loadPlotly() {
    const packed = Uint8Array.from(atob(read("plotly")), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  function theme(isDark) {
    const [ink, soft, grid, card] = isDark
      ? ["#ececea", "#a9adb2", "#34383d", "#1c1f22"] : ["#1c1d1f", "#55585c", "#e4e4de", "#ffffff"];
    const axis = { gridcolor: grid, linecolor: grid, zerolinecolor: grid, title: { standoff: 8, font: { size: 13 } } };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, sans-serif", size: 13 },
      hoverlabel: { bgcolor: card, bordercolor: grid, font: { color: ink } },
      updatemenudefaults: { bgcolor: card, bordercolor: grid, font: { color: ink } },
      modebar: { bgcolor: card, color: soft, activecolor: ink },
      xaxis: axis, yaxis: axis,
    } };
  }

  async function draw(place, { data, layout }) {
    layout.template = theme(dark.matches);
    layout.dragmode = touched ? false : "zoom";  // a finger scrolls the page
    const config = { responsive: true, displaylogo: false, displayModeBar: touched ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    await Plotly.newPlot(place, data, layout, config);
    plots.push(place);
  }

  const relayout = (isDark, more = {}) => plots.map((p) => Plotly.relayout(p, { template: theme(isDark), ...more }));

  try {
    await loadPlotly();
    const figures = JSON.parse(read("figures"));
    for (const [id, figure] of Object.entries(figures)) await draw(document.getElementById(id), figure);
    dark.addEventListener("change", () => relayout(dark.matches));
    addEventListener("beforeprint", () => {
      relayout(false, { width: 660 });  // fits A4 and letter
      relayout(false);  // once more: legends take their place by the size that the first has set
    });
    addEventListener("afterprint", () => relayout(dark.matches, { width: null, autosize: true }));
    root.dataset.state = "drawn";
  } catch (error) {
    root.dataset.state = "failed";
    console.error(error);
    for (const place of document.querySelectorAll(".plot"))
      place.textContent = "This browser cannot draw the charts (it takes one of 2023 or later); report/*.png has them.";
  }
})();
