// Scales and axes of the charts.

const MARGIN = { left: 58, right: 14, top: 10, bottom: 40 };

/** Round steps between two values, about `count` of them. */
function linearTicks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * ([1, 2, 5, 10].find((each) => each * power >= raw) ?? 10);
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick * step <= high + step * 1e-9; tick += 1) ticks.push(tick * step);
  return ticks;
}

function logTicks(low, high, base) {
  const ticks = [];
  const factors = base === 2 ? [1] : high / low > 300 ? [1] : high / low > 20 ? [1, 3] : [1, 1.5, 2, 3, 5, 7];
  for (let power = Math.floor(Math.log(low) / Math.log(base)); base ** power <= high * 1.0001; power += 1) {
    for (const factor of factors) {
      const tick = factor * base ** power;
      if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(tick);
    }
  }
  return ticks;
}

/** A scale from values to pixels, with ticks; logarithmic for `base` 2 or 10 where all values are positive. */
function scale(values, from, to, { base = 0, count = 5, whole = false } = {}) {
  const finite = values.filter(Number.isFinite);
  let low = Math.min(...finite);
  let high = Math.max(...finite);
  const isLog = base > 0 && low > 0;
  if (low === high) [low, high] = isLog ? [low / 1.5, high * 1.5] : [low - 1, high + 1];
  const pad = isLog ? (high / low) ** 0.05 : (high - low) * 0.05;
  [low, high] = isLog ? [low / pad, high * pad] : [low - pad, high + pad];
  const place = isLog ? Math.log : (value) => value;
  const share = (value) => (place(value) - place(low)) / (place(high) - place(low));
  const at = (value) => from + (to - from) * share(value);
  const ticks = isLog ? logTicks(low, high, base) : linearTicks(low, high, count);
  return { at, ticks: whole ? ticks.filter(Number.isInteger) : ticks };
}

const plainNumber = (value) => String(Number(value.toPrecision(6)));

/** Frame, ticks and titles. */
function axes(width, height, x, y, xTitle, yTitle) {
  const bottom = height - MARGIN.bottom;
  const across = x.ticks.map((tick) => [
    draw("line", { class: "grid", x1: x.at(tick), x2: x.at(tick), y1: MARGIN.top, y2: bottom }),
    draw("text", { x: x.at(tick), y: bottom + 16, "text-anchor": "middle" }, plainNumber(tick)),
  ]);
  const up = y.ticks.map((tick) => [
    draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(tick), y2: y.at(tick) }),
    draw("text", { x: MARGIN.left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, plainNumber(tick)),
  ]);
  return draw("g", { class: "axes", "aria-hidden": "true" }, across.flat(), up.flat(),
    draw("text", { class: "title", x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 6, "text-anchor": "middle" }, xTitle),
    draw("text", { class: "title", transform: `translate(13 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yTitle));
}

/** A figure in the section of charts: caption, choices, and a box that `render` fills, again when anything changes. */
function chart(id, title, render) {
  const tools = make("div", { class: "tools" });
  const box = make("div", { class: "chart" });
  const note = make("p", { class: "pale note" });
  const figure = make("figure", { id, class: "charted" }, make("figcaption", {}, title), tools, box, note);
  byId("charts").append(figure);
  let drawn = false;
  const update = () => {
    if (!drawn) return;
    hideTip();
    const content = render(Math.max(Math.min(box.clientWidth, 1100), 280), note);
    box.replaceChildren(content ?? make("p", { class: "pale" }, "Nothing to draw for the runs that are shown."));
  };
  listeners.push(update);
  let width = 0;
  new ResizeObserver(() => {
    if (Math.abs(box.clientWidth - width) > 10) {
      width = box.clientWidth;
      update();
    }
  }).observe(box);
  whenSeen(figure, () => {
    drawn = true;
    update();
  });
  return { tools, update };
}
