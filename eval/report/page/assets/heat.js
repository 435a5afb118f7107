// Errors by layer: a column per layer, a row per run, or per sampling step of one run.

const SHADES = 9;
const HEAT_ROWS = 60;

function startHeat() {
  const heat = data("data-heat");
  if (!heat.layers.length) return;
  const known = groups.filter((group) => rows.some((row, index) => row.group === group && heat.rows[index]));
  const figure = chart("heat", "Errors by layer", (width, note) =>
    (run?.select.value ? drawSteps(heat, Number(run.select.value), width, note) : drawHeat(heat, place.select.value, width, note)));
  const place = choice("Precision", known.map((group) => [group, group]), () => {
    if (run) run.select.value = "";
    figure.update();
  });
  place.select.value = known[known.length - 1];
  const stepped = heat.steps.map((row) => [row, `${rows[row].label}, ${rows[row].group}`]);
  const run = stepped.length ? choice("Steps of", [["", "(all steps of every run)"], ...stepped], figure.update) : null;
  figure.tools.append(place.label, ...(run ? [run.label] : []));
}

function drawSteps(heat, row, width, note) {
  const { steps, rows: values } = data(`data-steps-${row}`);
  note.textContent = `Relative error of each layer's output at each sampling step of ${rows[row].label}, ${rows[row].group}.`;
  return heatMap(steps.map((step) => `step ${step}`), heat.layers, values, width);
}

function drawHeat(heat, group, width, note) {
  const every = shown.filter((row) => rows[row].group === group && heat.rows[row]);
  const members = every.slice(0, HEAT_ROWS);
  if (!members.length) return null;
  note.textContent = "Relative error of each layer's output; a colour stands for the same error in every row." +
    (every.length > members.length ? ` The first ${members.length} of ${every.length} runs; search for others.` : "");
  return heatMap(members.map((row) => rows[row].label), heat.layers, members.map((row) => heat.rows[row]), width);
}

/** Rows of cells, coloured by the logarithm of their values. */
function heatMap(names, layers, values, width) {
  const label = Math.min(Math.max(...names.map((name) => name.length)) * 6.4 + 10, width * 0.4);
  const size = Math.max((width - label - 8) / layers.length, 5);
  const high = names.length > 30 ? 14 : 20;
  const whole = label + size * layers.length + 8;
  const logs = values.flat().filter((value) => value > 0).map(Math.log);
  const [low, top] = logs.reduce(([least, most], value) => [Math.min(least, value), Math.max(most, value)], [Infinity, -Infinity]);
  const shade = (value) => Math.min(Math.floor(((Math.log(value) - low) / (top - low || 1)) * SHADES), SHADES - 1);
  const image = draw("svg", { class: "heat", width: whole, height: names.length * high + 26, role: "group", "aria-label": `Errors of ${layers.length} layers, ${names.length} rows` },
    names.map((name, row) => draw("g", { transform: `translate(0 ${row * high})` },
      draw("text", { x: label - 6, y: high * 0.7, "text-anchor": "end" }, name.slice(0, Math.floor(label / 6.2))),
      values[row].map((value, column) => (value === null ? null : draw("rect", {
        class: value > 0 ? `h${shade(value)}` : "h-none", x: label + column * size, y: 1, width: Math.max(size - 0.6, 1), height: high - 2,
        "data-tip": `${row} ${column}`, tabindex: row || column ? "-1" : "0", role: "img",
        "aria-label": `${name}, ${layers[column]}: ${told(value)}`,
      }))))),
    blockNames(layers).map(([column, name]) => draw("g", { "aria-hidden": "true" },
      draw("line", { class: "grid", x1: label + column * size, x2: label + column * size, y1: 0, y2: names.length * high + 8 }),
      draw("text", { x: label + column * size + 3, y: names.length * high + 18 }, name))));
  addTips(image, (target) => {
    const [row, column] = target.dataset.tip.split(" ").map(Number);
    return [layers[column], names[row], `error ${told(values[row][column])}`];
  });
  image.addEventListener("keydown", (event) => moveInHeat(image, event));
  return make("div", {}, make("div", { class: "wide" }, image), scaleKey(Math.exp(low), Math.exp(top)));
}

/** Where a new block of layers begins: "transformer_blocks.3" as "3". */
function blockNames(layers) {
  const found = [];
  let last = null;
  layers.forEach((layer, column) => {
    const block = layer.match(/^(.*?\.\d+)\./)?.[1] ?? null;
    if (block !== null && block !== last) found.push([column, block.match(/\d+$/)[0]]);
    last = block;
  });
  return found;
}

function moveInHeat(image, event) {
  const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
  const at = event.target.dataset?.tip;
  if (!step || !at) return;
  event.preventDefault();
  const [row, column] = at.split(" ").map(Number);
  const next = image.querySelector(`[data-tip="${row + step[0]} ${column + step[1]}"]`);
  if (!next) return;
  event.target.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}

function scaleKey(low, high) {
  const shades = Array.from({ length: SHADES }, (_, index) => draw("rect", { class: `h${index}`, x: index * 16, width: 16, height: 12 }));
  return make("p", { class: "key-line pale" }, `${told(low)} `, draw("svg", { class: "scale", width: SHADES * 16, height: 12, "aria-hidden": "true" }, shades),
    ` ${told(high)} (logarithmic)`);
}
