// Errors over sampling steps, or over calibration prompts.

const COLOURS = 4; // of our lines; others are grey until they are pointed at

function startLines() {
  for (const found of data("data-lines")) {
    const figure = chart(`lines-${found.name}`, found.title, (width, note) =>
      drawLines(found, found.panels[Number(panel.select.value)], width, note));
    const panel = choice("Panel", found.panels.map((each, index) => [index, each.title]), figure.update);
    panel.select.value = found.panels.length - 1;
    figure.tools.append(panel.label);
  }
}

function drawLines(found, panel, width, note) {
  const visible = panel.lines.filter((line) => line.row === null || shown.includes(line.row));
  if (!visible.length) return null;
  const height = Math.min(Math.max(width * 0.5, 260), 420);
  const x = scale(visible.flatMap((line) => line.x), MARGIN.left, width - MARGIN.right,
    found.doubling ? { base: 2 } : { whole: true, count: 8 });
  const y = scale(visible.flatMap((line) => line.y), height - MARGIN.bottom, MARGIN.top, { base: 10 });
  const ordered = [...visible.filter((line) => !line.ours), ...visible.filter((line) => line.ours)];
  const image = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${found.title}, ${panel.title}, ${visible.length} lines` },
    draw("clipPath", { id: `plot-${found.name}` }, draw("rect", { x: MARGIN.left, y: MARGIN.top, width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom })),
    axes(width, height, x, y, found.axis, "relative error"),
    ordered.map((line) => oneLine(line, visible.filter((each) => each.ours).indexOf(line), x, y)));
  addTips(image, (target) => {
    const line = ordered[[...image.querySelectorAll(".series")].indexOf(target.closest(".series"))];
    const at = Number(target.dataset.tip);
    return [line.label, `${found.axis} ${line.x[at]}: ${told(line.y[at])} [${told(line.low[at])}, ${told(line.high[at])}]`];
  });
  note.textContent = `${visible.length} of ${panel.lines.length} lines. Orange: methods of SegQuant, automatic ones ` +
    "and your own. Point at a line, or reach its points with Tab, to see its name, values and interval.";
  return make("div", {}, image, legend(visible, image, ordered));
}

function oneLine(line, number, x, y, clip) {
  const points = line.x.map((value, index) => [x.at(value), y.at(line.y[index])]);
  const band = [...line.x.map((value, index) => [x.at(value), y.at(Math.max(line.low[index], line.y[index] / 1e3))]),
    ...line.x.map((value, index) => [x.at(value), y.at(line.high[index])]).reverse()];
  const css = line.ours ? `ours o${number % COLOURS}` : "";
  return draw("g", { class: `series ${css}` },
    draw("path", { class: "band", d: `M${band.join("L")}Z`, "clip-path": clip }),
    draw("path", { class: "wide-line", d: `M${points.join("L")}`, "data-tip": points.length - 1 }),
    draw("path", { class: "line", d: `M${points.join("L")}` }),
    points.map(([cx, cy], index) => draw("circle", { class: "mark", cx, cy, r: 3.5, "data-tip": index,
      tabindex: index ? "-1" : "0", role: "img", "aria-label": `${line.label}: ${told(line.y[index])}` })));
}

/** Names; pointing at one, or focusing it, brings its line out. */
function legend(visible, image, ordered) {
  const series = [...image.querySelectorAll(".series")];
  return make("ul", { class: "legend" }, visible.slice(0, 40).map((line) => {
    const own = series[ordered.indexOf(line)];
    const mark = (on) => () => own.classList.toggle("marked", on);
    return make("li", {}, make("button", {
      type: "button", class: own.getAttribute("class").replace("series", ""), onpointerenter: mark(true), onpointerleave: mark(false),
      onfocus: mark(true), onblur: mark(false),
    }, line.label));
  }));
}
