// The page's only script. Every page works without it; it adds sliders that always total 100 %, a text that stays
// in step with them, the draft, live progress, and settings that survive a reload.
//
// Shares are whole tenths of a percent, 0 to 1000, so that their total is exact.

"use strict";

const WHOLE = 1000;
const PERCENT = 10;
const POLL_MILLISECONDS = 500;
const TYPING_MILLISECONDS = 250;
const STORE = "tilemix-mixer-1";

const find = (selector, root = document) => root.querySelector(selector);
const findAll = (selector, root = document) => [...root.querySelectorAll(selector)];
/** Whether the studio was not reached: nobody answered, or a proxy did, in its own words. */
const isAway = (error) => error instanceof TypeError || error instanceof SyntaxError;
const fill = (text, values) => text.replace(/\$(\w+)/g, (_, name) => values[name]);

// --- The mix -------------------------------------------------------------------------------------------------

/** Split `total` among weights in multiples of `unit` by largest remainder; equal parts where all weights are 0. */
function apportion(weights, total, unit) {
  const parts = weights.some((weight) => weight > 0) ? weights : weights.map(() => 1);
  const sum = parts.reduce((a, b) => a + b, 0);
  const units = total / unit;
  const remainders = parts.map((part) => (part * units) % sum); // whole numbers, so that equal ones are equal
  const whole = parts.map((part, index) => (part * units - remainders[index]) / sum);
  const missing = units - whole.reduce((a, b) => a + b, 0);
  const order = parts.map((_, index) => index).sort((a, b) => remainders[b] - remainders[a] || a - b);
  for (const index of order.slice(0, missing)) whole[index] += 1;
  return whole.map((count) => count * unit);
}

/** The shares of a mix; their tenths total 1000 whatever is done. */
class Shares {
  constructor(list) {
    this.list = list; // {color, tenths, wish, locked}; wish: the share to keep proportions by
    this.rest = null; // the color that takes what the others leave
  }

  static of(mix, before = new Shares([])) {
    const list = mix.map(({ color, percent }) => {
      const tenths = Math.round(percent * PERCENT);
      const old = before.list.find((share) => share.color === color);
      return { color, tenths, wish: tenths, locked: old ? old.locked : false };
    });
    const shares = new Shares(list);
    shares.rest = list.some((share) => share.color === before.rest) ? before.rest : null;
    return shares;
  }

  /** Return the shares that a visit left; null where they are not a whole mix. */
  static stored(list, rest) {
    const isCount = (value) => Number.isInteger(value) && value >= 0;
    const isShare = (share) => typeof share?.color === "string" && isCount(share.tenths) && isCount(share.wish);
    if (!Array.isArray(list) || !list.every(isShare)) return null;
    const total = list.reduce((sum, share) => sum + share.tenths, 0);
    const colors = new Set(list.map((share) => share.color));
    if ((list.length && total !== WHOLE) || colors.size !== list.length) return null;
    const shares = new Shares(list.map((share) => ({ ...share, locked: share.locked === true })));
    shares.rest = colors.has(rest) ? rest : null;
    return shares;
  }

  get(color) {
    return this.list.find((share) => share.color === color);
  }

  /** Give a color so many tenths, as near as the locks allow; the others make room. */
  move(color, tenths) {
    const moved = this.get(color);
    const others = this.list.filter((share) => share !== moved);
    const locked = others.filter((share) => share.locked).reduce((sum, share) => sum + share.tenths, 0);
    const free = others.filter((share) => !share.locked);
    const most = WHOLE - locked;
    const target = free.length ? Math.min(Math.max(tenths, 0), most) : most;
    if (target === moved.tenths) return; // shares that were squeezed out stay out
    moved.tenths = target;
    const left = most - moved.tenths;
    const keeper = free.find((share) => share.color === this.rest);
    const kept = free.filter((share) => share !== keeper).reduce((sum, share) => sum + share.tenths, 0);
    if (keeper && left >= kept) {
      keeper.tenths = left - kept;
      return;
    }
    if (keeper) keeper.tenths = 0;
    const sharing = free.filter((share) => share !== keeper || free.length === 1);
    if (!sharing.length) return;
    const unit = left % PERCENT ? 1 : PERCENT;
    const parts = apportion(sharing.map((share) => share.wish), left, unit);
    sharing.forEach((share, index) => (share.tenths = parts[index]));
  }

  /** A slider was let go: from now on proportions are kept as they are. Shares that were squeezed out remember. */
  settle() {
    for (const share of this.list) {
      if (share.tenths > 0) share.wish = share.tenths;
    }
  }

  add(color) {
    this.list.push({ color, tenths: 0, wish: 0, locked: false });
    this.move(color, 10 * PERCENT);
    this.settle();
  }

  /** Whether another color can take this one's share. */
  canRemove(color) {
    const share = this.get(color);
    return this.list.length > 1 && (share.tenths === 0 || this.list.some((other) => other !== share && !other.locked));
  }

  remove(color) {
    const share = this.get(color);
    if (share.tenths > 0) this.move(color, 0);
    this.list = this.list.filter((other) => other !== share);
    if (this.rest === color) this.rest = null;
    this.settle();
  }

  get mix() {
    return this.list.filter((share) => share.tenths > 0);
  }
}

// --- A result ------------------------------------------------------------------------------------------------

/** Shows how a prediction comes on, then its card; one at a time. */
class Result {
  constructor(box, onDone = () => {}) {
    this.box = box;
    this.onDone = onDone;
    this.watched = null;
    box.addEventListener("submit", (event) => this.submit(event));
  }

  /** Follow the card in the box, if what it shows is still running. */
  resume() {
    localizeTimes(this.box);
    const card = find("[data-running]", this.box);
    if (card) this.watch(card.dataset.result);
  }

  async show(id) {
    this.watched = id;
    await this.load(id);
    if (find("[data-running]", this.box)) this.watch(id);
  }

  async load(id) {
    const answer = await fetch(`/results/${id}?part=card`);
    if (!answer.ok || this.watched !== id) return;
    this.box.innerHTML = await answer.text(); // our own page's HTML, escaped where it was made
    localizeTimes(this.box);
  }

  async watch(id) {
    this.watched = id;
    while (this.watched === id) {
      try {
        const answer = await fetch(`/results/${id}/state`);
        if (this.watched !== id) return;
        if ([401, 404].includes(answer.status)) {
          location.reload(); // the page says what is the matter: log in again, or nothing here
          return;
        }
        if (answer.ok) {
          const state = await answer.json();
          if (this.watched !== id) return;
          if (state.is_done) {
            await this.load(id);
            this.onDone(id, this.box);
            return;
          }
          this.report(state);
        }
      } catch (error) {
        if (!isAway(error)) throw error; // the studio is away for a moment: ask again
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MILLISECONDS));
    }
  }

  report(state) {
    const progress = find("[data-progress]", this.box);
    const text = find("[data-state]", this.box);
    if (!progress || !text) return;
    if (state.fraction === null) progress.removeAttribute("value");
    else progress.value = state.fraction;
    if (text.textContent !== state.text) text.textContent = state.text;
    find("[data-detail]", this.box).textContent = state.detail;
  }

  /** Cancel without leaving the page. */
  async submit(event) {
    const form = event.target;
    if (!form.matches("[data-cancel]") || !this.watched) return;
    event.preventDefault();
    const button = find("button", form);
    button.disabled = true;
    try {
      const answer = await fetch(`/api/predictions/${this.watched}/cancel`, { method: "POST" });
      button.disabled = answer.ok;
    } catch (error) {
      if (!isAway(error)) throw error;
      button.disabled = false; // the studio is away for a moment: try again
    }
  }
}

function localizeTimes(root) {
  for (const time of findAll("time[datetime]", root)) {
    const moment = new Date(time.dateTime);
    time.textContent = moment.toLocaleString(document.documentElement.lang, { dateStyle: "medium", timeStyle: "short" });
  }
}

// --- The form ------------------------------------------------------------------------------------------------

class Mixer {
  constructor(form) {
    this.form = form;
    this.data = JSON.parse(form.dataset.studio);
    const { lang } = document.documentElement;
    this.percents = new Intl.NumberFormat(lang, { style: "percent", maximumFractionDigits: 1 });
    this.numbers = new Intl.NumberFormat(lang, { maximumFractionDigits: 1 });
    this.takeModel(this.data);
    this.prompt = find("#prompt");
    this.seed = find("#seed");
    this.task = find("#task"); // null where there is one task at most
    this.seedLock = find("#lock-seed");
    this.rows = find("#shares");
    this.result = new Result(find("#result"), (id, box) => this.finished(box));
    this.asked = 0; // previews, to use only the answer to the latest
    this.read = this.data.preview;
    this.shares = Shares.of(this.read.mix);
    this.prepare();
    this.isUnread = false; // whether a text was restored whose shares are not known
    if (!this.data.is_given) this.restore();
    else this.forgetQuery();
    this.drawRows();
    this.show();
    const moveSliders = this.isUnread || Boolean(this.task?.value); // a task may have other colors
    if (!this.read.error) this.askPreview({ moveSliders });
    this.result.resume();
    this.hideDraft();
  }

  /** Show what needs the script, and listen. */
  prepare() {
    for (const element of [find("#sliders"), find("#total"), this.seedLock, find("#reroll"), find(".keys")]) {
      element.hidden = false;
    }
    this.prompt.addEventListener("input", () => {
      clearTimeout(this.typing);
      this.typing = setTimeout(() => this.askPreview({ moveSliders: true }), TYPING_MILLISECONDS);
      this.store();
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) this.form.requestSubmit();
    });
    this.form.addEventListener("submit", (event) => this.submit(event));
    this.form.noValidate = false; // without the script the server checks, and opens the settings at the error
    this.form.addEventListener("invalid", () => (find(".more").open = true), true); // a closed field takes no focus
    this.form.addEventListener("change", () => this.store());
    for (const name of this.data.draft_inputs) {
      const moveSliders = name === "task"; // it may have other colors
      find(`#${name}`)?.addEventListener("change", () => this.askPreview({ moveSliders }));
    }
    this.takePictures();
    const draft = find("#draft");
    draft.addEventListener("error", () => this.dropDraft());
    if (draft.complete && !draft.naturalWidth) this.dropDraft(); // it came before this script
    find("#result").addEventListener("submit", (event) => this.again(event));
    find("#reroll").addEventListener("click", () => {
      this.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % (Number(this.seed.dataset.max) + 1);
      this.lockSeed(true);
    });
    this.seedLock.addEventListener("click", () => this.lockSeed(this.seedLock.getAttribute("aria-pressed") !== "true"));
    this.seed.addEventListener("input", () => this.lockSeed(this.seed.value !== ""));
    find("#add").addEventListener("click", () => this.openChart(find("#chart").hidden));
    find("#chart").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.openChart(false);
    });
    for (const chip of findAll("[data-preset]")) {
      chip.addEventListener("click", (event) => {
        event.preventDefault();
        const preset = this.data.presets[chip.dataset.preset];
        const mix = Object.entries(preset).map(([color, percent]) => ({ color, percent }));
        this.shares = Shares.of(mix);
        this.changed({ rebuild: true });
      });
    }
    this.lockSeed(this.seed.value !== "");
  }

  /** Fill the form from a picture that is chosen, or dropped anywhere on the page. */
  takePictures() {
    const input = find("#picture");
    input.addEventListener("change", () => input.files.length && input.form.submit());
    addEventListener("dragover", (event) => {
      if (event.dataTransfer.types.includes("Files")) event.preventDefault(); // or the browser would open it
    });
    addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      input.files = event.dataTransfer.files;
      input.form.submit();
    });
  }

  /** A share as the language writes it: "12.5%", "12,5 %". */
  percent(tenths) {
    return this.percents.format(tenths / WHOLE);
  }

  /** Show the colors and the defaults of the model that draws. */
  takeModel({ colors, placeholders }) {
    this.palette = colors;
    this.colors = new Map(colors.map((color) => [color.color, color]));
    for (const [name, value] of Object.entries(placeholders)) find(`#${name}`).placeholder = value;
  }

  // The rows.

  describe(color) {
    return this.colors.get(color) || { color, word: color, label: color, ral: null, hex: "#8A8580" };
  }

  drawRows() {
    this.rows.replaceChildren(...this.shares.list.map((share) => this.makeRow(share)));
  }

  makeRow(share) {
    const row = find("#row").content.cloneNode(true).firstElementChild;
    const color = this.describe(share.color);
    const { words } = this.data;
    row.dataset.color = share.color;
    find("rect", row).setAttribute("fill", color.hex);
    find(".name", row).textContent = color.label;
    find(".ral", row).textContent = color.ral ? `RAL ${color.ral}` : "";
    const name = (element, text) => element.setAttribute("aria-label", fill(text, { color: color.label.toLowerCase() }));
    const slider = find("[type=range]", row);
    const typed = find("[data-typed]", row);
    name(slider, words.slider);
    name(typed, words.share);
    slider.addEventListener("input", () => this.move(share.color, Math.round(slider.value * PERCENT)));
    slider.addEventListener("change", () => this.shares.settle());
    typed.addEventListener("change", () => this.type(share.color, typed));
    typed.addEventListener("keydown", (event) => {
      const steps = { ArrowUp: PERCENT, ArrowDown: -PERCENT };
      if (event.key in steps) {
        event.preventDefault();
        this.move(share.color, this.shares.get(share.color).tenths + steps[event.key]);
        this.shares.settle();
      } else if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) {
        event.preventDefault(); // the value counts, the form is not sent
        this.type(share.color, typed);
      }
    });
    const buttons = { lock: words.lock, rest: words.rest, remove: words.remove };
    for (const [kind, text] of Object.entries(buttons)) {
      const button = find(`[data-${kind}]`, row);
      name(button, text);
      button.title = button.getAttribute("aria-label");
      button.addEventListener("click", () => this[kind](share.color));
    }
    return row;
  }

  type(color, field) {
    const value = Number(field.value.trim().replace(",", ".").replace("%", ""));
    if (field.value.trim() !== "" && Number.isFinite(value)) {
      this.move(color, Math.round(value * PERCENT));
      this.shares.settle();
    } else {
      this.show();
    }
  }

  move(color, tenths) {
    this.shares.move(color, tenths);
    this.changed();
  }

  lock(color) {
    const share = this.shares.get(color);
    share.locked = !share.locked;
    if (share.locked && this.shares.rest === color) this.shares.rest = null;
    this.changed();
  }

  rest(color) {
    this.shares.rest = this.shares.rest === color ? null : color;
    this.shares.get(color).locked = false;
    this.changed();
  }

  remove(color) {
    if (!this.shares.canRemove(color)) return;
    const at = this.shares.list.findIndex((share) => share.color === color);
    this.shares.remove(color);
    this.changed({ rebuild: true });
    const next = this.rows.children[Math.min(at, this.rows.children.length - 1)];
    find("[type=range]", next).focus();
  }

  openChart(isOpen) {
    const chart = find("#chart");
    const add = find("#add");
    const hadFocus = chart.contains(document.activeElement);
    if (isOpen) {
      const used = new Set(this.shares.list.map((share) => share.color));
      chart.replaceChildren(...this.palette.filter((color) => !used.has(color.color)).map((color) => this.makeChoice(color)));
    }
    chart.hidden = !isOpen;
    add.setAttribute("aria-expanded", String(isOpen));
    if (isOpen) find("button", chart)?.focus();
    else if (hadFocus) add.focus();
  }

  makeChoice(color) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(find("svg", find("#row").content).cloneNode(true), color.label);
    find("rect", button).setAttribute("fill", color.hex);
    if (color.ral) {
      const ral = document.createElement("small");
      ral.textContent = `RAL ${color.ral}`;
      button.append(ral);
    }
    button.addEventListener("click", () => {
      this.openChart(false);
      this.shares.add(color.color);
      this.changed({ rebuild: true });
      find("[type=range]", this.rows.lastElementChild).focus();
    });
    return button;
  }

  /** The sliders have changed: the text follows. */
  changed({ rebuild = false } = {}) {
    const number = (tenths) => String(tenths / PERCENT);
    const mix = this.shares.mix.map((share) => `${number(share.tenths)}% ${this.describe(share.color).word}`).join(", ");
    this.prompt.value = `${this.read.head}${mix}${this.read.tail}`;
    if (rebuild) this.drawRows();
    this.show();
    this.store();
    clearTimeout(this.typing);
    this.typing = setTimeout(() => this.askPreview(), TYPING_MILLISECONDS);
  }

  /** Put the shares into rows and bar. */
  show() {
    this.rows.hidden = false;
    for (const row of this.rows.children) {
      const share = this.shares.get(row.dataset.color);
      const slider = find("[type=range]", row);
      const typed = find("[data-typed]", row);
      slider.value = share.tenths / PERCENT;
      slider.disabled = typed.disabled = share.locked;
      slider.setAttribute("aria-valuetext", this.percent(share.tenths));
      slider.style.setProperty("--share", `${share.tenths / PERCENT}%`);
      slider.style.setProperty("--color", this.describe(share.color).hex);
      typed.value = this.numbers.format(share.tenths / PERCENT);
      const lock = find("[data-lock]", row);
      lock.setAttribute("aria-pressed", String(share.locked));
      setIcon(lock, share.locked ? "locked" : "lock");
      find("[data-rest]", row).setAttribute("aria-pressed", String(this.shares.rest === share.color));
      find("[data-remove]", row).disabled = !this.shares.canRemove(share.color);
    }
    const total = this.shares.list.reduce((sum, share) => sum + share.tenths, 0);
    find("#total").textContent = this.shares.list.length ? this.percent(total) : "";
    find("#add").disabled = this.shares.list.length >= this.data.max_colors;
    this.drawBar();
  }

  drawBar(mix = this.shares.mix) {
    const bar = find(".controls svg.bar");
    let x = 0;
    bar.replaceChildren(
      ...mix.map((share) => {
        const rect = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        const values = { x: `${x / PERCENT}%`, width: `${share.tenths / PERCENT}%`, height: "100%", fill: this.describe(share.color).hex };
        for (const [name, value] of Object.entries(values)) rect.setAttribute(name, value);
        x += share.tenths;
        return rect;
      }),
    );
    const named = mix.map((share) => `${this.describe(share.color).label} ${this.percent(share.tenths)}`);
    bar.setAttribute("aria-label", named.join(", "));
  }

  // The text.

  /** What decides how the text is read. */
  get query() {
    return new URLSearchParams({ prompt: this.prompt.value, seed: this.seed.value, task: this.task?.value ?? "" });
  }

  /** Ask the server how it reads the text; `moveSliders`: the text was typed, the sliders follow. */
  async askPreview({ moveSliders = false } = {}) {
    const turn = ++this.asked;
    try {
      const answer = await fetch(`/preview?${this.query}`);
      if (turn !== this.asked || !answer.ok) return this.read;
      const read = await answer.json();
      if (turn !== this.asked) return this.read;
      this.takeModel(read);
      this.showPreview(read);
      this.showDraft(read);
      if (!read.error) {
        this.read = read;
        if (moveSliders) {
          this.shares = Shares.of(read.mix, this.shares);
          this.drawRows();
          this.show();
          this.store();
        }
      }
      this.rows.hidden = Boolean(read.error);
      this.drawBar(read.error ? [] : this.shares.mix);
      if (!read.mix.length) find("#total").textContent = this.data.words.no_mix;
      return read;
    } catch (error) {
      if (!isAway(error)) throw error;
      this.complain(this.data.words.failed);
      return null;
    }
  }

  /** Show the layout that the picture will be drawn from: the server's own, which has the exact shares. */
  showDraft(read) {
    find("#draft-box").setAttribute("aria-hidden", String(Boolean(read.error))); // the last one, faded
    if (read.error) return;
    const draft = find("#draft");
    draft.hidden = find("#draft-note").hidden = !read.mix.length;
    if (draft.hidden) return;
    const fields = ["prompt", ...this.data.draft_inputs].map((name) => find(`#${name}`));
    const usable = fields.filter((field) => field?.value && field.validity.valid);
    const address = `/draft?${new URLSearchParams(usable.map((field) => [field.name, field.value]))}`;
    if (draft.getAttribute("src") !== address) draft.src = address;
  }

  /** There is no draft: a color has no swatch. */
  dropDraft() {
    const draft = find("#draft");
    draft.removeAttribute("src");
    draft.hidden = find("#draft-note").hidden = true;
  }

  showPreview(read) {
    const error = find("[data-prompt-error]") || find("#error");
    error.hidden = !read.error;
    this.prompt.toggleAttribute("aria-invalid", Boolean(read.error));
    if (read.error) {
      this.prompt.setAttribute("aria-invalid", "true");
      this.prompt.setAttribute("aria-describedby", error.id);
      error.replaceChildren(read.error);
      if (read.marked) {
        const place = makeElement("span", "place", read.before);
        place.append(makeElement("mark", "", read.marked));
        error.append(place);
      }
    } else {
      find("#sent").textContent = read.sent_prompt;
    }
    const reading = find("#reading");
    reading.hidden = !read.reading.length;
    reading.replaceChildren(...read.reading.map((piece) => (piece.is_read ? makeElement("mark", "", piece.text) : piece.text)));
    const notes = find("#notes");
    notes.textContent = read.notes.join(" ");
    notes.hidden = !read.notes.length;
  }

  complain(text) {
    const error = find("#send-error");
    error.textContent = text;
    error.hidden = !text;
  }

  // Seed, settings, sending.

  lockSeed(isLocked) {
    this.seedLock.setAttribute("aria-pressed", String(isLocked));
    setIcon(this.seedLock, isLocked ? "locked" : "lock");
    this.store();
  }

  /** The fields of the inputs beside the prompt. A file is another form's, and no script may set one. */
  get settings() {
    return [...this.form.elements].filter((field) => field.matches("input[name]:not([type=file]), select[name]"));
  }

  /** The value of an input of predict(), from its text in a form. */
  readInput(name, text) {
    return this.data.numbers.includes(name) ? Number(text) : text;
  }

  /** The inputs of predict() in the form; a field left empty is left out. */
  get inputs() {
    const inputs = { prompt: this.prompt.value.trim() };
    for (const field of this.settings) {
      if (field.value !== "") inputs[field.name] = this.readInput(field.name, field.value);
    }
    if (this.seedLock.getAttribute("aria-pressed") !== "true") delete inputs.seed;
    return inputs;
  }

  async submit(event) {
    event.preventDefault();
    clearTimeout(this.typing);
    await this.generate(this.inputs);
  }

  /** "Another one" below a picture: the same inputs with a fresh seed. */
  async again(event) {
    // Several pictures are asked for without the script, which shows one at a time.
    if (!event.target.matches("[data-again]") || event.submitter?.name === "more") return;
    event.preventDefault();
    const entries = [...new FormData(event.target)].map(([name, value]) => [name, this.readInput(name, value)]);
    await this.generate(Object.fromEntries(entries), { isChecked: true });
  }

  async generate(inputs, { isChecked = false } = {}) {
    const button = find("#generate");
    button.disabled = true;
    this.complain("");
    try {
      if (!isChecked) {
        const read = await this.askPreview();
        if (!read || read.error) {
          this.prompt.focus();
          return;
        }
      }
      const answer = await fetch("/api/predictions", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify(inputs),
      });
      if (answer.status === 401) {
        location.reload(); // the session has ended: the page asks for the token again
        return;
      }
      const found = await answer.json();
      if (!answer.ok) {
        this.complain(answer.status === 429 ? this.data.words.slower : found.error.message);
        return;
      }
      history.replaceState(null, "", `/?result=${found.id}`);
      find("#draft-box").hidden = false;
      await this.result.show(found.id);
      find(".stage").scrollIntoView({ behavior: "smooth", block: "nearest" });
    } catch (error) {
      if (!isAway(error)) throw error;
      this.complain(this.data.words.failed);
    } finally {
      button.disabled = false;
    }
  }

  /** The picture is there: show it, wherever the reader has scrolled meanwhile. */
  async reveal(box) {
    const picture = find("[data-picture]", box);
    try {
      if (picture) await picture.decode(); // until then it has no height
    } catch (error) {
      if (!(error instanceof DOMException)) throw error; // it cannot be loaded: its frame is shown
    }
    (picture || box).scrollIntoView({ block: "nearest" });
  }

  finished(box) {
    this.hideDraft();
    this.reveal(box);
    const seed = find("[data-seed]", box);
    if (seed && this.seedLock.getAttribute("aria-pressed") !== "true") this.seed.value = seed.textContent.trim();
    this.store();
  }

  hideDraft() {
    find("#draft-box").hidden = find("#result [data-picture]") !== null;
  }

  // What survives a reload.

  store() {
    if (!this.isReady) return;
    const fields = Object.fromEntries(this.settings.map((field) => [field.name, field.value]));
    const state = {
      prompt: this.prompt.value,
      head: this.read.head,
      tail: this.read.tail,
      shares: this.shares.list,
      rest: this.shares.rest,
      fields,
      isSeedLocked: this.seedLock.getAttribute("aria-pressed") === "true",
      isMoreOpen: find(".more").open,
    };
    try {
      localStorage.setItem(STORE, JSON.stringify(state));
    } catch (error) {
      if (!(error instanceof DOMException)) throw error; // storage is full or forbidden: nothing is kept
    }
  }

  /** Take over what the last visit left, piece by piece; what is not as `store` writes it stays as the page came. */
  restore() {
    const { prompt, head, tail, shares, rest, fields, isSeedLocked, isMoreOpen } = Object(readStore());
    if (typeof prompt === "string") {
      this.prompt.value = prompt;
      const stored = Shares.stored(shares, rest);
      this.isUnread = !stored || typeof head !== "string" || typeof tail !== "string";
      if (!this.isUnread) {
        this.read = { ...this.read, head, tail, error: null };
        this.shares = stored;
      }
    }
    for (const field of this.settings) {
      const value = Object(fields)[field.name];
      const isKnown = !field.options || [...field.options].some((option) => option.value === value);
      if (typeof value === "string" && isKnown) field.value = value;
    }
    find(".more").open = isMoreOpen === true;
    this.lockSeed(typeof isSeedLocked === "boolean" ? isSeedLocked : this.seed.value !== "");
  }

  /** The form was filled from the address: from now on it keeps itself. */
  forgetQuery() {
    if (location.pathname === "/") history.replaceState(null, "", "/");
  }

  start() {
    this.isReady = true;
    this.store();
    find(".more").addEventListener("toggle", () => this.store());
  }
}

/** Return what the last visit left, or another program's value at its place; null where nothing can be read. */
function readStore() {
  try {
    return JSON.parse(localStorage.getItem(STORE));
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof DOMException)) throw error;
    return null; // not JSON, or storage is forbidden
  }
}

function setIcon(button, name) {
  const use = find("use", button);
  use.setAttribute("href", use.getAttribute("href").replace(/#.*/, `#${name}`));
}

function makeElement(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

// --- The gallery ---------------------------------------------------------------------------------------------

/** Two pictures can be compared, not one and not three. */
function watchChoice(form) {
  const boxes = findAll("[name=id][type=checkbox]", form);
  const fixed = findAll("[name=id][type=hidden]", form).length;
  const update = () => {
    const count = fixed + boxes.filter((box) => box.checked).length;
    for (const box of boxes) box.disabled = count >= 2 && !box.checked;
    find("button", form).disabled = count !== 2;
  };
  form.addEventListener("change", update);
  update();
}

// --- Start ---------------------------------------------------------------------------------------------------

/** The menus of the page's head: one open at a time, closed by Escape or by a click elsewhere. */
function watchMenus() {
  const menus = findAll("details.menu");
  const close = (but) => menus.filter((menu) => menu !== but).forEach((menu) => (menu.open = false));
  document.addEventListener("click", (event) => close(event.target.closest("details.menu")));
  document.addEventListener("keydown", (event) => {
    const open = event.key === "Escape" && menus.find((menu) => menu.open);
    if (!open) return;
    close(null);
    find("summary", open).focus();
  });
}

watchMenus();
localizeTimes(document);
if (find("#mixer")) new Mixer(find("#mixer")).start();
else if (find("#result")) new Result(find("#result")).resume();
if (find("[data-compare]")) watchChoice(find("[data-compare]"));
for (const select of findAll("[data-submit]")) select.addEventListener("change", () => select.form.requestSubmit());
