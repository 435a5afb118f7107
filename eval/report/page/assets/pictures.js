// The grid of pictures: prompts in rows, the unquantized model and the runs that are shown in columns.

const sets = data("data-pictures");
const COLUMNS_AT_ONCE = 12;
let currentSet = 0;
let columnLimit = COLUMNS_AT_ONCE;

/** Addresses of a strip's pictures, one per prompt. */
const sources = (set, strip) => data(`strip-${set}-${strip}`).map((picture) => `data:image/png;base64,${picture}`);
const stripName = ([row]) => (row === null ? "unquantized" : rows[row].label);
const stripGroup = ([row]) => (row === null || rows[row].float ? "" : rows[row].group);

/** Places of the strips to show: without a quantizer always, else those of runs that are shown. */
function shownStrips() {
  const visible = new Set(shown);
  return sets[currentSet].strips
    .map((strip, place) => ({ strip, place }))
    .filter(({ strip: [row] }) => row === null || rows[row].float || visible.has(row));
}

function pictureCell(place, prompt, source) {
  const set = sets[currentSet];
  const name = `${set.prompts[prompt]}, ${stripName(set.strips[place])} ${stripGroup(set.strips[place])}`.trim();
  return make("td", {}, make("button", { type: "button", class: "picture", "aria-label": `Zoom: ${name}`, onclick: () => openZoom(place, prompt) },
    make("img", { src: source, alt: "", loading: "lazy", decoding: "async", class: set.side <= 128 ? "pixels" : null })));
}

function drawGrid(box, more) {
  const set = sets[currentSet];
  const found = shownStrips();
  const chosen = found.slice(0, columnLimit);
  const every = chosen.map(({ place }) => sources(currentSet, place));
  const head = make("tr", {}, make("th", { scope: "col", class: "key" }, "prompt"), chosen.map(({ strip }) =>
    make("th", { scope: "col" }, stripName(strip), make("br"), make("small", {}, stripGroup(strip)))));
  const body = set.prompts.map((prompt, index) => make("tr", {},
    make("th", { scope: "row", class: "key" }, prompt), chosen.map(({ place }, column) => pictureCell(place, index, every[column][index]))));
  box.replaceChildren(make("table", { class: "grid-table" },
    make("caption", {}, "The same prompts and latents. Click a picture to zoom."), make("thead", {}, head), make("tbody", {}, body)));
  more.hidden = found.length <= columnLimit;
  more.textContent = `Show ${Math.min(found.length - columnLimit, COLUMNS_AT_ONCE)} more of ${found.length} columns`;
}

function startPictures() {
  if (!sets.length) return;
  const section = byId("pictures");
  const box = make("div", { class: "wide" });
  const more = make("button", { type: "button", onclick: () => {
    columnLimit += COLUMNS_AT_ONCE;
    drawGrid(box, more);
  } });
  const compared = make("div", { id: "compare" });
  const redraw = () => {
    columnLimit = COLUMNS_AT_ONCE;
    drawGrid(box, more);
    drawCompare(compared);
  };
  if (sets.length > 1) {
    const which = choice("Of", sets.map((set, index) => [index, set.title || `set ${index + 1}`]), (value) => {
      currentSet = Number(value);
      redraw();
    });
    section.append(make("div", { class: "tools" }, which.label));
  }
  const [width, height] = sets[0].size;
  const scaled = sets[0].side < Math.max(width, height) ? `, here scaled to ${sets[0].side} pixels` : "";
  section.append(make("p", { class: "pale" }, `${sets[0].prompts.length} prompts; pictures of ${width} × ${height} pixels${scaled}.`),
    compared, make("h3", {}, "All methods"), box, more);
  byId("pictures").hidden = false;
  let drawn = false;
  whenSeen(section, () => {
    drawn = true;
    redraw();
  });
  listeners.push(() => {
    if (drawn) drawGrid(box, more);
  });
}
