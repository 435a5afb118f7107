// Error against cost. A line joins the runs that no other one beats in both.

function startScatter() {
  const costs = columns.map((column, index) => [index, column]).filter(([, column]) => !column.judged);
  const errors = columns.map((column, index) => [index, column]).filter(([, column]) => column.judged);
  if (!costs.length || !errors.length) return;
  const asOptions = (found) => found.map(([index, column]) => [index, columnHead(column)]);
  const figure = chart("pareto", "Error against cost", (width, note) =>
    drawScatter(Number(x.select.value), Number(y.select.value), place.select.value, width, note));
  const x = choice("Cost", asOptions(costs), figure.update);
  const y = choice("Judged by", asOptions(errors), figure.update);
  const place = choice("Precision", [["", "all"], ...groups.filter((group) => hasQuantized(group)).map((group) => [group, group])], figure.update);
  if (columnIndex("weight_mb") >= 0) x.select.value = columnIndex("weight_mb");
  if (columnIndex(main) >= 0) y.select.value = columnIndex(main);
  figure.tools.append(x.label, y.label, place.label);
}

const hasQuantized = (group) => rows.some((row) => row.group === group && !row.float);

function pointsOf(x, y, group) {
  return shown
    .filter((row) => !rows[row].float && (!group || rows[row].group === group))
    .map((row) => ({ row, x: valueOf(row, x), y: valueOf(row, y), interval: rows[row].values[y]?.slice(1) ?? [] }))
    .filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y) && point.x !== null && point.y !== null);
}

/** Marks the points that no other one beats in cost and error; `sign` turns the value into an error. */
function markFront(points, xSign, ySign) {
  const byCost = [...points].sort((a, b) => xSign * (a.x - b.x) || ySign * (a.y - b.y));
  let best = Infinity;
  let bestCost = null;
  for (const point of byCost) {
    const error = ySign * point.y;
    point.front = error < best || (error === best && point.x === bestCost);
    if (error < best) [best, bestCost] = [error, point.x];
  }
  return byCost.filter((point) => point.front);
}

function drawScatter(xColumn, yColumn, group, width, note) {
  const points = pointsOf(xColumn, yColumn, group);
  if (!points.length) return null;
  const signs = [xColumn, yColumn].map((index) => (columns[index].better === "higher" ? -1 : 1));
  const front = markFront(points, ...signs);
  const height = Math.min(Math.max(width * 0.55, 280), 460);
  const x = scale(points.map((point) => point.x), MARGIN.left, width - MARGIN.right, { count: width < 500 ? 4 : 7 });
  const edges = points.flatMap((point) => [point.y, ...point.interval]);
  const y = scale(edges, height - MARGIN.bottom, MARGIN.top, { base: signs[1] > 0 ? 10 : 0 });
  const path = front.map((point, index) => `${index ? `H${x.at(point.x)}V${y.at(point.y)}` : `M${x.at(point.x)} ${y.at(point.y)}`}`).join("");
  const better = (index) => (columns[index].better === "higher" ? "higher is better" : "lower is better");
  const image = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${columnHead(columns[yColumn])} against ${columnHead(columns[xColumn])}, ${points.length} runs` },
    axes(width, height, x, y, columnHead(columns[xColumn]), `${columnHead(columns[yColumn])} (${better(yColumn)})`),
    draw("path", { class: "front", d: path }),
    points.map((point) => whisker(point, x, y)),
    points.map((point) => dot(point, x, y)),
    frontLabels(front, x, y, width, !group && shownGroups().length > 1));
  addTips(image, (target) => {
    const { row } = target.dataset;
    return [rows[row].label, rows[row].group, `${columnHead(columns[yColumn])}: ${cellText(row, yColumn)}`,
      `${columnHead(columns[xColumn])}: ${cellText(row, xColumn)}`];
  });
  note.textContent = "Filled, with a name and on the line: no other run that is shown costs less and errs less. " +
    "Orange: methods of SegQuant, automatic ones and your own. Enter or a click shows all numbers of a run.";
  return image;
}

function whisker(point, x, y) {
  if (point.interval.length < 2 || !point.interval.every(Number.isFinite)) return null;
  return draw("line", { class: `whisker ${rows[point.row].ours ? "ours" : ""}`, x1: x.at(point.x), x2: x.at(point.x),
    y1: y.at(point.interval[0]), y2: y.at(point.interval[1]) });
}

function dot(point, x, y) {
  const row = rows[point.row];
  const open = () => openRow(point.row, lines[point.row]);
  return draw("circle", {
    class: `dot ${row.ours ? "ours" : ""} ${point.front ? "on-front" : ""}`, cx: x.at(point.x), cy: y.at(point.y), r: 5,
    tabindex: "0", role: "button", "aria-label": `${row.label}, ${row.group}: ${told(point.x)}, ${told(point.y)}`,
    "data-tip": true, "data-row": point.row, onclick: open,
    onkeydown: (event) => { if (event.key === "Enter") open(); },
  });
}

/** Names of the front, as far as they find room. */
function frontLabels(front, x, y, width, several) {
  const taken = [];
  return front.map((point) => {
    const { label, group } = rows[point.row];
    const text = (several ? `${label}, ${group}` : label).slice(0, 40);
    const size = text.length * 6.2 + 10;
    const right = x.at(point.x) + size < width;
    const box = { left: right ? x.at(point.x) + 8 : x.at(point.x) - size, top: y.at(point.y) - 8, width: size };
    const hit = taken.some((other) => Math.abs(other.top - box.top) < 14 && box.left < other.left + other.width && other.left < box.left + size);
    if (hit) return null;
    taken.push(box);
    return draw("text", { class: `name ${rows[point.row].ours ? "ours" : ""}`, "aria-hidden": "true",
      x: right ? x.at(point.x) + 8 : x.at(point.x) - 8, y: y.at(point.y) + 4, "text-anchor": right ? "start" : "end" }, text);
  });
}
