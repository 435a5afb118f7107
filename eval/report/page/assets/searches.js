// Trials of searches: what no other one beats is filled, and listed below.

function startSearches() {
  for (const [index, search] of data("data-searches").entries()) {
    for (const trial of search.trials) trial.values = trial.values.map(number);
    if (search.trials.length) startSearch(search, index);
  }
}

function startSearch(search, index) {
  const { objectives } = search;
  const figure = chart(`search-${index}`, `Search of ${objectives.map((each) => each.name).join(" and ")}`, (width, note) =>
    drawSearch(search, Number(x?.select.value ?? -1), Number(y?.select.value ?? 0), width, note));
  const options = objectives.map((each, place) => [place, objectiveHead(each)]);
  const x = objectives.length > 1 ? choice("Across", options, figure.update) : null;
  const y = objectives.length > 1 ? choice("Up", options, figure.update) : null;
  if (x) {
    x.select.value = 1;
    y.select.value = 0;
    figure.tools.append(x.label, y.label);
  }
}

const objectiveHead = ({ name, better }) => `${name} (${better} is better)`;
const trialTitle = (trial) => `trial ${trial.number}`;

/** One objective is drawn over the trials' numbers, of several two at a time. */
function drawSearch(search, xPlace, yPlace, width, note) {
  const { objectives, trials } = search;
  const across = (trial) => (xPlace < 0 ? trial.number : trial.values[xPlace]);
  const points = trials.map((trial) => ({ trial, x: across(trial), y: trial.values[yPlace] }))
    .filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y));
  const front = trials.filter((trial) => trial.front);
  note.textContent = `${trials.length} trials with values` + (search.others ? `, ${search.others} without` : "") +
    ". Filled, and in the list: no other trial is better in one objective and nowhere worse. Enter or a click shows all numbers of a trial.";
  const image = points.length ? searchImage(objectives, points, xPlace, yPlace, width) : make("p", { class: "pale" }, "No trial has finite values of both.");
  return make("div", {}, image, frontTable(objectives, front));
}

function searchImage(objectives, points, xPlace, yPlace, width) {
  const height = Math.min(Math.max(width * 0.5, 260), 420);
  const x = scale(points.map((point) => point.x), MARGIN.left, width - MARGIN.right, { count: width < 500 ? 4 : 7, whole: xPlace < 0 });
  const y = scale(points.map((point) => point.y), height - MARGIN.bottom, MARGIN.top, { base: objectives[yPlace].better === "lower" ? 10 : 0 });
  const xTitle = xPlace < 0 ? "trial" : objectiveHead(objectives[xPlace]);
  const line = points.filter((point) => point.trial.front).sort((a, b) => a.x - b.x || a.y - b.y);
  const path = line.map((point, at) => `${at ? `H${x.at(point.x)}V${y.at(point.y)}` : `M${x.at(point.x)} ${y.at(point.y)}`}`).join("");
  const image = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${objectives[yPlace].name} against ${xTitle}, ${points.length} trials` },
    axes(width, height, x, y, xTitle, objectiveHead(objectives[yPlace])),
    objectives.length === 2 && xPlace !== yPlace ? draw("path", { class: "front", d: path }) : null,
    points.map(({ trial, ...at }) => draw("circle", {
      class: `dot ${trial.front ? "on-front" : ""}`, cx: x.at(at.x), cy: y.at(at.y), r: 5, tabindex: "0", role: "button",
      "aria-label": `${trialTitle(trial)}: ${trial.values.map(told).join(", ")}`, "data-tip": true, "data-trial": trial.number,
      onclick: () => openTrial(objectives, trial), onkeydown: (event) => { if (event.key === "Enter") openTrial(objectives, trial); },
    })));
  addTips(image, (target) => {
    const { trial } = points.find((point) => String(point.trial.number) === target.dataset.trial);
    return [trialTitle(trial), trial.told, ...objectives.map((each, place) => `${each.name}: ${told(trial.values[place])}`)];
  });
  return image;
}

function frontTable(objectives, front) {
  const heads = ["trial", ...objectives.map(objectiveHead), "drawn", "files"];
  const signs = objectives.map((each) => (each.better === "higher" ? -1 : 1));
  const ordered = [...front].sort((a, b) => signs[0] * (a.values[0] - b.values[0]) || a.number - b.number);
  return make("div", { class: "wide", tabindex: "-1" }, make("table", { class: "front-list" },
    make("caption", {}, `${front.length} trials that no other one beats`),
    make("thead", {}, make("tr", {}, heads.map((head) => make("th", { scope: "col", class: "key" }, head)))),
    make("tbody", {}, ordered.map((trial) => make("tr", {},
      make("th", { scope: "row", class: "key" }, make("button", { type: "button", class: "sort", onclick: () => openTrial(objectives, trial) }, String(trial.number))),
      trial.values.map((value) => make("td", {}, told(value))),
      make("td", { class: "key" }, trial.told),
      make("td", { class: "key files" }, trial.url ? make("a", { href: trial.url }, "folder") : "–"))))));
}

/** The run of a trial; what the search knows of one that has no row (one of several seeds, or elsewhere). */
function openTrial(objectives, trial) {
  if (trial.row !== null) return openRow(trial.row, lines[trial.row]);
  openDialog(trialTitle(trial), make("p", {}, trial.told),
    ...objectives.map((each, place) => make("p", {}, `${each.name}: ${told(trial.values[place])}`)));
}
