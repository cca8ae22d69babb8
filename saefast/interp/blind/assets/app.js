// The page: the start, one card after another, keys, and files.
"use strict";

(() => {
  const { el } = saefast;
  const { store, card, form } = saefast.blind;
  const by = (id) => document.getElementById(id);
  const section = { start: by("start"), card: by("card") };
  let data, current = -1, made, panels, tabs, states, active;

  function problem(error) {
    by("problem").textContent = error.message;
    by("problem").hidden = false;
    by("problem").scrollIntoView({ block: "nearest" });
  }
  const well = () => (by("problem").hidden = true);

  function progress() {
    const n = store.count();
    by("progress").hidden = current < 0;
    by("bar").max = data.cards.length;
    by("bar").value = n;
    by("rated").textContent = `${n} of ${data.cards.length} rated`;
    by("save").disabled = current < 0;
    by("save").classList.toggle("due", n === data.cards.length && store.unsaved());
  }

  const signs = [["dark to pale", "how strongly the unit is active, from its strongest to its weakest"], ["outline", "the token that was drawn"], ["· ↵ →", "space, end of a line, tab"], ["⟨e2 80⟩", "bytes that are no character alone"], ["⟨U+202E⟩", "a character that cannot be seen"]];
  const keys = [["i", "write the interpretation"], ["Esc", "leave it"], ["0 to 5", "answer the marked question"], ["↓ ↑ or j k", "next, previous question"], ["Enter", "on: to the sets, to the next card that is not rated"], ["n p or → ←", "next, previous card"], ["x", "no interpretation"], ["v", "intervals or sets"], ["s", "save ratings"], ["t", "light or dark"]];
  const list = (pairs, tag) => el("dl", {}, pairs.map(([name, text]) => el("div", {}, el("dt", {}, el(tag, {}, name)), el("dd", {}, text))));

  function what() {
    const { n_intervals, per_interval, rated } = data.config;
    const each = per_interval === 1 ? "one example" : `${per_interval} examples`;
    const texts = [
      `Each of the ${data.cards.length} cards shows one unit of a language model. Cards are shuffled, all have the same shape, and nothing on them says of which kind their unit is.`,
      `The activations of the unit, from 0 to its largest, are cut into ${n_intervals} intervals of equal width, with ${each} from each: a token on which it is active, in its text. The shade is relative to the unit's largest activation.`,
      data.logits ? "Beside them are the tokens whose logits the unit raises most." : null,
      "Say in a sentence what the unit stands for, over all of its intervals, and answer the questions. If you can say nothing, say so: that is an answer, too.",
      rated ? `Then ${rated} intervals are shown again, each by itself, without saying which they are: judge whether they fit what you wrote.` : null,
    ];
    return texts.filter(Boolean).map((text) => el("p", {}, text));
  }

  function help() {
    const dialog = el("dialog", { "aria-labelledby": "help-title", onclose: () => dialog.remove(), onclick: (event) => event.target === dialog && dialog.close() },
      el("h2", { id: "help-title" }, "What to do"), what(), el("h2", {}, "Keys"), list(keys, "kbd"), el("h2", {}, "Signs"), list(signs, "span"),
      el("p", { class: "quiet commitment" }, "Commitment to the key (SHA-256): ", el("code", {}, data.commitment)),
      el("form", { method: "dialog" }, el("button", {}, "Close")));
    document.body.append(dialog);
    dialog.showModal();
  }

  function start(last) {
    current = -1;
    section.card.hidden = true;
    const name = el("input", { type: "text", id: "rater", maxlength: 80, autocomplete: "off", required: true, value: last });
    const go = el("form", { class: "begin", onsubmit: (event) => {
      event.preventDefault();
      if (!name.value.trim()) return name.focus();
      well(), store.begin(name.value), next();
    } }, el("label", { for: "rater" }, "Your name or initials"), name, el("button", { class: "main" }, "Begin, or go on"));
    section.start.replaceChildren(el("h1", { tabindex: "-1" }, "Before you begin"), ...what(), go,
      el("p", { class: "quiet" }, "What you rate is kept in this browser under your name. Nothing is sent anywhere: when all cards are rated, save the ratings as a file and send that. You can save at any time and load the file to go on, also on another computer."),
      el("p", { class: "quiet commitment" }, "Which card is which unit is in a sealed key that is not on this page. Its SHA-256 is ", el("code", {}, data.commitment), "."));
    section.start.hidden = false;
    progress(), name.focus();
  }

  // Which examples are shown: those of all intervals, or the sets with their questions.
  function view(sets) {
    panels.forEach((panel, i) => (panel.hidden = sets !== Boolean(i)));
    tabs.forEach((tab, i) => tab.setAttribute("aria-pressed", String(sets === Boolean(i))));
    for (const { button } of states) button.textContent = toSets() ? "Sets to rate" : "Next card";
  }
  const inSets = () => panels[0].hidden;

  function mark(row) {
    active?.classList.remove("active");
    active = row;
    row?.classList.add("active");
    if (row) view(made.sets.includes(row));
  }

  function changed(rating) {
    const full = store.answered(rating);
    const left = made.open().filter((row) => !row.querySelector(":checked")).length;
    const text = full ? "This card is rated." : !rating.none && !store.hasWords(rating) ? "First write an interpretation." : left === 1 ? "One question is open." : `${left} questions are open.`;
    for (const state of states) state.text.textContent = text;
    section.card.querySelector(".card-head").classList.toggle("rated", full);
    view(inSets()), progress();
    if (!store.keeps()) problem(new Error("This browser keeps nothing for this page: save your ratings before you close it."));
  }

  function show(i) {
    current = Math.max(0, Math.min(data.cards.length - 1, i));
    const one = data.cards[current];
    made = form.make(data, one, changed, mark);
    active = undefined;
    states = [];
    const foot = () => {
      states.push({ text: el("span", { class: "state" }), button: el("button", { type: "button", class: "main", onclick: forward, title: "Enter" }) });
      return el("p", { class: "foot" }, Object.values(states.at(-1)));
    };
    const names = ["All intervals", ...(one.sets.length ? ["Sets to rate"] : [])];
    tabs = names.map((text, i) => el("button", { type: "button", onclick: () => view(Boolean(i)) }, text));
    const note = el("p", { class: "quiet" }, "Each set is one interval of this unit, in no order and without its shade. Judge it by what you wrote.");
    panels = [el("div", {}, card.intervals(data, one)), el("div", {}, note, card.sets(data, one, made.sets), foot())];
    const move = (text, to, more) => el("button", { type: "button", onclick: () => show(to), disabled: to < 0 || to >= data.cards.length, ...more }, text);
    section.card.replaceChildren(
      el("div", { class: "heading card-head" }, el("h1", { tabindex: "-1" }, `Card ${current + 1} `, el("small", {}, `of ${data.cards.length} · ${one.id}`)),
        el("div", { class: "steps" }, move("← previous", current - 1), move("next →", current + 1))),
      el("div", { class: "page blind" }, el("div", {}, el("div", { class: "jumps" }, tabs), panels), el("aside", { class: "side", "aria-label": "Rating" }, card.logits(data, one), made.element, foot())));
    section.start.hidden = true;
    section.card.hidden = false;
    view(false), changed(made.rating());
    scrollTo(0, 0);
    section.card.querySelector("h1").focus({ preventScroll: true });
    if (!made.rating().none && store.hasWords(made.rating())) mark(made.open().find((row) => !row.querySelector(":checked")));
    performance.mark(`card ${current}`);
  }

  // Whether the sets are what comes next.
  const toSets = () => made.sets.length > 0 && !inSets() && made.open().find((row) => !row.querySelector(":checked"))?.dataset.name === "set-0";
  function forward() {
    if (!toSets()) return next();
    mark(made.sets[0]), made.sets[0].focusIt();
    scrollTo(0, 0);
  }

  // The next card that is not rated, from here on; after the last one, what to do.
  function next() {
    const order = data.cards.map((_, i) => (current + 1 + i) % data.cards.length);
    const open = order.find((i) => !store.answered(store.of(data.cards[i].id)));
    if (open !== undefined) return show(open);
    if (current < 0) show(0);
    const dialog = el("dialog", { "aria-labelledby": "done-title", onclose: () => dialog.remove() },
      el("h2", { id: "done-title" }, `All ${data.cards.length} cards are rated`), el("p", {}, "Save the ratings as a file and send it to who gave you this page. You can still change answers until then."),
      el("form", { method: "dialog", class: "foot" }, el("button", { class: "main", onclick: save }, "Save ratings"), el("button", {}, "Back")));
    document.body.append(dialog);
    dialog.showModal();
  }

  function save() {
    if (current < 0) return;
    saefast.say(`saved as ${store.save()}`);
    progress();
  }

  async function load() {
    const [file] = by("file").files;
    by("file").value = "";
    if (!file) return;
    try {
      store.load(await file.text());
      well(), (current = -1), next();
      saefast.say(`${store.count()} of ${data.cards.length} cards of ${store.name()} are rated`);
    } catch (error) {
      problem(error);
    }
  }

  function theme() {
    const root = document.documentElement;
    root.dataset.theme = getComputedStyle(root).colorScheme === "dark" ? "light" : "dark";
    saefast.stored("theme", root.dataset.theme);
    saefast.say(`${root.dataset.theme} theme`);
  }

  function step(by_) {
    const rows = made.open();
    if (!rows.length) return made.words.focus();
    const at = active ? rows.indexOf(active) + by_ : by_ > 0 ? 0 : rows.length - 1;
    const row = rows[Math.max(0, Math.min(rows.length - 1, at))];
    mark(row), row.focusIt();
    row.scrollIntoView({ block: "nearest" });
  }

  // A number answers the marked question, or the first one that is open, and the next open one is marked.
  function answer(number) {
    const rows = made.open();
    const row = rows.includes(active) ? active : rows.find((one) => !one.querySelector(":checked"));
    if (!row || !row.answer(number)) return;
    const rest = made.open();
    const after = rest.slice(rest.indexOf(row) + 1).find((one) => !one.querySelector(":checked"));
    mark(after ?? row), (after ?? row).focusIt();
    (after ?? row).scrollIntoView({ block: "nearest" });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const { target } = event;
    const on = current >= 0;
    if (target.matches("textarea, input[type=text]")) {
      if (event.key === "Escape") event.preventDefault(), target.blur(), on && step(1);
      return;
    }
    if (event.key === "Enter" && target.matches("button, a")) return;
    if (target.matches("input[type=radio]") && (event.key === "ArrowLeft" || event.key === "ArrowRight")) return; // choose the number
    const does = { "?": help, t: theme };
    if (on) {
      Object.assign(does, { i: () => made.words.focus(), j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1), n: () => show(current + 1), p: () => show(current - 1), Enter: forward, x: () => made.none.click(), v: () => tabs.length > 1 && view(!inSets()), s: save });
      (does.ArrowRight = does.n), (does.ArrowLeft = does.p);
      for (let number = 0; number <= 9; number++) does[number] = () => answer(number);
    }
    if (Object.hasOwn(does, event.key)) event.preventDefault(), does[event.key]();
  });

  async function begin() {
    try {
      if (typeof DecompressionStream === "undefined") throw new Error("This page needs a browser of 2023 or later.");
      data = await saefast.load("cards");
      await saefast.tokens.ready();
      by("theme").addEventListener("click", theme);
      by("help").addEventListener("click", help);
      by("save").addEventListener("click", save);
      by("load").addEventListener("click", () => by("file").click());
      by("file").addEventListener("change", load);
      start(store.open(data));
      performance.mark("ready");
    } catch (error) {
      problem(error);
    }
  }
  begin();
})();
