// One tip for all charts: what the mouse or the keyboard is on.

const tip = byId("tip");

function showTip(target, lines) {
  tip.replaceChildren(...lines.map((line, index) => make(index ? "div" : "b", {}, line)));
  tip.hidden = false;
  const at = target.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(at.left + at.width / 2 - size.width / 2, 4), innerWidth - size.width - 4);
  const above = at.top - size.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 0 ? above : at.bottom + 8}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** Tips for every element in `root` that has data-tip; its lines are `lines(element)`. */
function addTips(root, lines) {
  const found = (event) => event.target.closest?.("[data-tip]");
  const show = (event) => {
    const target = found(event);
    if (target) showTip(target, lines(target));
  };
  root.addEventListener("pointerover", show);
  root.addEventListener("focusin", show);
  root.addEventListener("pointerout", hideTip);
  root.addEventListener("focusout", hideTip);
}

addEventListener("scroll", hideTip, { passive: true, capture: true });
