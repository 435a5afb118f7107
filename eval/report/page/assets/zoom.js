// One picture as large as the window lets it be; arrow keys go on to its neighbours.

function openZoom(place, prompt) {
  const set = sets[currentSet];
  const strip = set.strips[place];
  const found = shownStrips().map((each) => each.place);
  const image = make("img", {
    class: `zoomed ${set.side <= 128 ? "pixels" : ""}`, src: sources(currentSet, place)[prompt], alt: `${set.prompts[prompt]}, ${stripName(strip)}`,
  });
  const step = (columns_, rows_) => {
    const column = found[found.indexOf(place) + columns_];
    const row = prompt + rows_;
    if (column !== undefined && set.prompts[row] !== undefined) openZoom(column, row);
  };
  const button = (text, label, ...by) => make("button", { type: "button", "aria-label": label, onclick: () => step(...by) }, text);
  const file = strip[1] && strip[0] !== null ? fileLink(strip, set.indices[prompt]) : null;
  openDialog(`${stripName(strip)} ${stripGroup(strip)}`.trim(),
    make("figure", { class: "zoom" }, image, make("figcaption", {}, set.prompts[prompt])),
    make("p", { class: "steps" }, button("←", "Method before", -1, 0), button("→", "Next method", 1, 0),
      button("↑", "Prompt before", 0, -1), button("↓", "Next prompt", 0, 1), file ?? ""));
  zoomStep = step;
}

let zoomStep = null;
dialog.addEventListener("close", () => { zoomStep = null; });
dialog.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (by && zoomStep && !event.target.matches("input, select")) {
    event.preventDefault();
    zoomStep(...by);
  }
});

/** The picture's file, which is beside the run's results. */
function fileLink([row, folder], index) {
  const home = lines[row].querySelector(".files a").getAttribute("href");
  const address = home + [...folder.split("/"), `${String(index).padStart(5, "0")}.png`].map(encodeURIComponent).join("/");
  return make("a", { href: address }, "file");
}
