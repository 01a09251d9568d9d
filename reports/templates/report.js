"use strict";
const { config, figures } = JSON.parse(document.getElementById("charts").textContent);
const CURVE_COLUMNS = ["id", "trial", "name", "state", "step", "value"];
const views = {};

/** Rows of a figure's curves, one per drawn point. */
function unpack(curves) {
  const rows = [];
  for (const [id, trial, name, state, series, values] of curves.lines) {
    const steps = curves.steps[series];
    values.forEach((value, i) => rows.push({ id, trial, name, state, step: steps[i], value }));
  }
  return rows;
}

async function draw(name) {
  const { spec, curves } = figures[name];
  const place = document.getElementById("chart-" + name);
  if (curves) spec.data = { values: unpack(curves) };
  try {
    const { view } = await window.vegaEmbed(place, spec, {
      mode: "vega-lite",
      actions: false,
      renderer: "svg",
      config,
      tooltip: { disableDefaultStyle: true },
    });
    views[name] = view;
    place.querySelector("svg").setAttribute("aria-hidden", "true"); // the frame around it has the words
    if (curves) place.addEventListener("pointerover", ({ target }) => single(place, target.__data__?.datum?.id));
    view.addEventListener("click", (_, item) => follow(item?.datum?.trial));
  } catch (error) {
    place.textContent = "This figure could not be drawn; its table is below.";
    console.error(name, error);
  }
}

/** Dims every line but one; none where no line is pointed at. Vega's own selection takes a second at 1,000 lines. */
function single(place, id) {
  for (const line of place.querySelectorAll(".mark-line path[stroke-width='1.2']"))
    line.style.opacity = id && line.__data__.datum.id !== id ? 0.1 : "";
}

/** The first figure at once, the others one by one, so that the page stays usable meanwhile. */
async function drawAll() {
  for (const name of Object.keys(figures)) {
    await draw(name);
    performance.mark("drawn-" + name);
    await new Promise((resolve) => setTimeout(resolve));
  }
  document.documentElement.dataset.drawn = Object.keys(views).length;
}

function follow(trial) {
  if (trial) location.hash = "trial-" + trial;
}

/** The row that an address points to, out of the folded tables around it. */
function show() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let around = target; around; around = around.parentElement)
    if (around.localName === "details") around.open = true;
  if (target?.localName === "tr") target.scrollIntoView({ block: "center" });
}

function save(name, type, content) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csv(name) {
  const { columns, rows, curves } = figures[name];
  const table = curves
    ? [CURVE_COLUMNS, ...unpack(curves).map((row) => CURVE_COLUMNS.map((column) => row[column]))]
    : [columns, ...rows];
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  return table.map((row) => row.map((value) => quoted(String(value ?? ""))).join(",")).join("\n") + "\n";
}

/** The drawing with the colours of the present theme written in. */
async function svg(name) {
  const style = getComputedStyle(document.documentElement);
  const drawn = await views[name].toSVG();
  return drawn.replace(/var\((--[\w-]+)\)/g, (_, variable) => style.getPropertyValue(variable));
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  getSelection().selectAllChildren(source);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    document.execCommand("copy");
  }
  button.firstChild.data = "Copied";
  setTimeout(() => (button.firstChild.data = "Copy"), 2000);
}

document.addEventListener("click", async ({ target }) => {
  const button = target.closest("button");
  const { csv: table, svg: picture, copy: source } = button?.dataset ?? {};
  if (table) save(table + ".csv", "text/csv", csv(table));
  if (picture && views[picture]) save(picture + ".svg", "image/svg+xml", await svg(picture));
  if (source) copy(button);
});
addEventListener("hashchange", show);
show();
drawAll();
