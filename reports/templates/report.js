"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const print = window.matchMedia("print");
let drawn = [];

async function draw() {
  drawn.forEach((result) => result.finalize());
  const config = dark.matches && !print.matches ? charts.dark : charts.light;
  drawn = await Promise.all(
    Object.entries(charts.specs).map(([name, chart]) =>
      window.vegaEmbed(document.getElementById("chart-" + name), structuredClone(chart.spec), {
        mode: "vega-lite",
        actions: false,
        renderer: chart.canvas ? "canvas" : "svg",
        config,
        tooltip: { theme: dark.matches ? "dark" : "light" },
      }),
    ),
  );
}

dark.addEventListener("change", draw);
print.addEventListener("change", draw);
draw();
