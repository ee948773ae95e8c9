// The canvas: draws the cells of one denoise step, keeps all steps for the slider, and shows what else a token might
// have been. A cell is [kind, text, probability, alternatives] as in the server's canvas messages.

const LEVELS = [0.2, 0.4, 0.65, 0.9]; // bounds between the classes p0 to p4

export class CanvasView {
  #frames = [];
  #before = "";
  #at = -1;
  #timer = 0;

  constructor({ canvas, slider, label, play, tip }) {
    Object.assign(this, { canvas, slider, label, play, tip });
    slider.addEventListener("input", () => { this.#halt(); this.show(Number(slider.value)); });
    play.addEventListener("click", () => (this.#timer ? this.#halt() : this.#replay()));
    for (const kind of ["pointermove", "focusin"]) canvas.addEventListener(kind, (event) => this.#explain(event.target));
    for (const kind of ["pointerleave", "focusout"]) canvas.addEventListener(kind, () => { tip.hidden = true; });
    canvas.addEventListener("keydown", (event) => this.#walk(event));
  }

  // Begin anew; before: text that stands before the first cell.
  reset(before = "") {
    this.#halt();
    this.#frames = [];
    this.#before = before;
    this.#at = -1;
    this.canvas.replaceChildren(span("prompt", before));
    this.slider.disabled = this.play.disabled = true;
    this.slider.max = this.slider.value = 0;
    this.label.textContent = "";
    this.tip.hidden = true;
  }

  add(message) {
    const follows = this.#at === this.#frames.length - 1;
    this.#frames.push(message);
    this.slider.disabled = this.play.disabled = this.#frames.length < 2;
    this.slider.max = this.#frames.length - 1;
    if (follows) this.show(this.#frames.length - 1);
  }

  show(index) {
    this.#at = index;
    const { cells, step } = this.#frames[index];
    this.slider.value = index;
    this.label.textContent = `step ${step} of ${this.#frames.at(-1).step}`;
    this.tip.hidden = true;
    this.canvas.replaceChildren(span("prompt", this.#before), ...cells.map((cell, place) => drawn(cell, place)));
  }

  #explain(target) {
    const place = target.dataset?.place;
    if (place === undefined) { this.tip.hidden = true; return; }
    const [kind, text, probability, others] = this.#frames[this.#at].cells[place];
    if (probability === null || probability === undefined) { this.tip.hidden = true; return; }
    const rows = (others ?? []).map(([other, share]) => row(other, share, other.trim() === text.trim()));
    const table = document.createElement("table");
    table.append(...rows);
    this.tip.replaceChildren(`${visible(text)} ${percent(probability)} when written`, table);
    this.tip.dataset.kind = kind;
    this.tip.hidden = false;
    const box = target.getBoundingClientRect();
    const size = this.tip.getBoundingClientRect();
    const below = box.bottom + 6 + size.height < innerHeight;
    this.tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - 6 - size.height)}px`;
    this.tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - size.width - 4))}px`;
  }

  #walk(event) {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && document.activeElement[step];
    if (next?.dataset.place === undefined) return;
    event.preventDefault();
    next.focus();
  }

  #replay() {
    let index = 0;
    this.play.textContent = "Pause";
    const tick = () => {
      this.show(index);
      index += 1;
      if (index >= this.#frames.length) this.#halt();
    };
    this.#timer = setInterval(tick, Math.max(60, Math.min(400, 5000 / this.#frames.length)));
    tick();
  }

  #halt() {
    clearInterval(this.#timer);
    this.#timer = 0;
    this.play.textContent = "Replay";
  }
}

function drawn([kind, text, probability], place) {
  const known = kind !== "masked" && kind !== "given" && probability !== null;
  const level = known ? ` p${LEVELS.filter((bound) => probability >= bound).length}` : "";
  const cell = span(`cell ${kind}${level}`, kind === "masked" ? "" : text);
  cell.dataset.place = place;
  if (kind === "masked") cell.setAttribute("aria-label", "masked");
  else if (kind !== "given") cell.tabIndex = place ? -1 : 0;
  return cell;
}

function row(text, share, chosen) {
  const line = document.createElement("tr");
  line.className = chosen ? "chosen" : "";
  for (const content of [visible(text), percent(share)]) line.insertCell().textContent = content;
  return line;
}

function span(kind, text) {
  const made = document.createElement("span");
  made.className = kind;
  made.textContent = text;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`;
const visible = (text) => JSON.stringify(text).slice(1, -1).replaceAll(" ", "\u00b7") || "\u2205";
