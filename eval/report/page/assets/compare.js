// Any two methods of a prompt: a slider between them, and what differs.

const GAINS = [1, 2, 4, 8, 16];

function drawCompare(box) {
  const set = sets[currentSet];
  const names = set.strips.map((strip, place) => [place, `${stripName(strip)} ${stripGroup(strip)}`.trim()]);
  const update = () => drawPair(stage, Number(prompt.select.value), Number(a.select.value), Number(b.select.value), Number(gain.select.value));
  const prompt = choice("Prompt", set.prompts.map((text, index) => [index, text]), update);
  const a = choice("A", names, update);
  const b = choice("B", names, update);
  const gain = choice("Difference times", GAINS.map((each) => [each, each]), update);
  const stage = make("div", { class: "stage" });
  const last = set.strips.length - 1;
  b.select.value = last;
  gain.select.value = 4;
  box.replaceChildren(make("h3", {}, "Two methods"),
    make("div", { class: "tools" }, prompt.label, a.label, b.label, gain.label), stage);
  update();
}

function drawPair(stage, prompt, a, b, gain) {
  const set = sets[currentSet];
  const css = set.side <= 128 ? "pixels" : null;
  const picture = (place) => make("img", { class: css, src: sources(currentSet, place)[prompt], alt: `${set.prompts[prompt]}, ${stripName(set.strips[place])}` });
  const [below, above] = [picture(b), picture(a)];
  above.classList.add("above");
  const bar = make("span", { class: "bar", "aria-hidden": "true" });
  const slide = (share) => {
    above.style.clipPath = `inset(0 ${100 - share}% 0 0)`;
    bar.style.left = `${share}%`;
  };
  const range = make("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "How much of A is seen", oninput: () => slide(Number(range.value)) });
  const view = make("div", { class: "slider" }, below, above, bar);
  const canvas = make("canvas", { class: css, role: "img", "aria-label": "Difference of A and B" });
  const told_ = make("figcaption", {});
  const drag = (event) => {
    if (event.buttons !== 1 && event.type !== "click") return;
    const edge = view.getBoundingClientRect();
    range.value = Math.min(Math.max(((event.clientX - edge.left) / edge.width) * 100, 0), 100);
    slide(Number(range.value));
  };
  view.addEventListener("pointermove", drag);
  view.addEventListener("click", drag);
  stage.replaceChildren(
    make("figure", {}, view, range, make("figcaption", {}, `left A, ${stripName(set.strips[a])}; right B, ${stripName(set.strips[b])}`)),
    make("figure", {}, canvas, told_));
  slide(50);
  Promise.all([above.decode(), below.decode()]).then(() => {
    told_.textContent = `|A − B| × ${gain}: ${drawDifference(canvas, above, below, gain)}`;
  });
}

/** Draws |A − B| × gain, and says how large the difference is. */
function drawDifference(canvas, first, second, gain) {
  const [width, height] = [first.naturalWidth, first.naturalHeight];
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = (image) => {
    context.drawImage(image, 0, 0, width, height);
    return context.getImageData(0, 0, width, height).data;
  };
  const [a, b] = [pixels(first), pixels(second)];
  const out = context.createImageData(width, height);
  let squares = 0;
  let most = 0;
  for (let index = 0; index < a.length; index += 1) {
    const gap = index % 4 === 3 ? 0 : Math.abs(a[index] - b[index]);
    out.data[index] = index % 4 === 3 ? 255 : gap * gain;
    squares += gap * gap;
    most = Math.max(most, gap);
  }
  context.putImageData(out, 0, 0);
  const mean = squares / (a.length * 0.75);
  const psnr = mean ? `${told(10 * Math.log10(65025 / mean))} dB` : "equal";
  return mean ? `psnr ${psnr}, at most ${most} of 255` : "the pictures are equal";
}
