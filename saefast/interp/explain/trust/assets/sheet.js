// The sheet: its cards, and what was answered, kept in this browser until it is saved as a file.
"use strict";

(() => {
  const { el } = saefast;
  const by = (id) => document.getElementById(id);
  const CHOICES = [["holds", "It holds"], ["part", "It holds in part"], ["wrong", "It is wrong"]];
  const GROUPS = ["The strongest", "Active, drawn at random", "Not active, drawn at random"];
  let data, place;
  let answers = {}; // id -> { choice, note }
  let saved = true;

  const of = (id) => (Object.hasOwn(answers, id) ? answers[id] : { choice: null, note: "" });
  const isOpen = ({ id }) => of(id).choice === null;
  const count = () => data.cards.filter((card) => !isOpen(card)).length;

  function problem(error) {
    by("problem").textContent = error.message;
    by("problem").hidden = false;
  }

  function keep() {
    const text = JSON.stringify({ rater: by("rater").value, answers, saved });
    saefast.stored(place, text);
    if (saefast.stored(place) !== text) problem(new Error("This browser keeps nothing for this page: save your answers before you close it."));
  }

  // What this page kept, and nothing else that may be there.
  function restore() {
    try {
      const found = JSON.parse(saefast.stored(place) ?? "{}");
      by("rater").value = String(found.rater ?? "");
      for (const { id } of data.cards) {
        if (!Object.hasOwn(found.answers ?? {}, id)) continue;
        const { choice, note } = found.answers[id];
        answers[id] = { choice: CHOICES.some(([name]) => name === choice) ? choice : null, note: String(note ?? "") };
      }
      saved = found.saved ?? true;
    } catch {} // not what this page wrote
  }

  function progress() {
    const n = count();
    by("bar").max = data.cards.length;
    by("bar").value = n;
    by("count").textContent = `${n} of ${data.cards.length}`;
    by("save").classList.toggle("due", n === data.cards.length && !saved);
    by("next").disabled = n === data.cards.length;
    for (const card of data.cards) by(`card-${card.id}`).classList.toggle("answered", !isOpen(card));
  }

  function change(id, changes) {
    answers[id] = { ...of(id), ...changes };
    saved = false;
    keep(), progress();
  }

  function window_(card, i) {
    const tokens = card.tokens[i].map((number, at) => saefast.tokens.heat(saefast.tokens.token(number), card.shades[i][at] / data.config.shades));
    return el("li", { class: "example" }, tokens);
  }

  function windows(card) {
    let first = 0;
    return card.groups.flatMap((n, group) => {
      const rows = Array.from({ length: n }, (_, i) => window_(card, first + i));
      first += n;
      return [el("h3", {}, GROUPS[group], n ? "" : ": there is none"), el("ul", {}, rows)];
    });
  }

  function made(card) {
    const { id } = card;
    const inputs = CHOICES.map(([choice]) => el("input", { type: "radio", name: `choice-${id}`, value: choice, checked: of(id).choice === choice, onchange: () => change(id, { choice }) }));
    const labels = CHOICES.map(([, text], i) => el("label", {}, inputs[i], el("span", {}, text)));
    const note = el("input", { type: "text", class: "note", maxlength: 1000, placeholder: "A line of your own", "aria-label": `A line of your own on explanation ${id}`, value: of(id).note, oninput: () => change(id, { note: note.value }) });
    const sentence = card.sentence.map(([text, named]) => (named ? el("i", { class: "sign" }, `⟨${text}⟩`) : text));
    const question = el("fieldset", { class: "answer" }, el("legend", {}, `Does explanation ${id} hold?`), el("div", { class: "choices" }, labels), note);
    const element = el("section", { class: "card", id: `card-${id}`, "aria-label": `Explanation ${id}` },
      el("h2", {}, `Explanation ${id} `, el("small", {}, `of ${data.cards.length}`)), el("p", { class: "sentence", dir: "auto" }, sentence.length ? sentence : "(no words)"), windows(card), question);
    element.answer = (i) => (inputs[i].click(), inputs[i].focus({ preventScroll: true }));
    element.look = () => (element.scrollIntoView({ block: "start" }), (inputs.find((one) => one.checked) ?? inputs[0]).focus({ preventScroll: true }));
    return element;
  }

  // The card that has the focus, else the first that reaches below the header.
  function current() {
    const focused = document.activeElement?.closest(".card");
    return focused ?? [...document.querySelectorAll(".card")].find((one) => one.getBoundingClientRect().bottom > 120);
  }

  function next() {
    const here = data.cards.findIndex(({ id }) => `card-${id}` === document.activeElement?.closest(".card")?.id);
    const order = data.cards.map((_, i) => data.cards[(here + 1 + i) % data.cards.length]);
    const open = order.find(isOpen);
    if (open) by(`card-${open.id}`).look();
  }

  function save() {
    const rater = by("rater").value.trim();
    if (!rater) return by("rater").focus(), saefast.say("first write your initials");
    const given = data.cards.filter((card) => !isOpen(card)).map(({ id }) => ({ id, ...of(id) }));
    const file = { format: "saefast-explanation-sheet", version: 1, commitment: data.commitment, rater, answers: given };
    const name = `sheet-${rater.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-${given.length}-of-${data.cards.length}.json`;
    const url = URL.createObjectURL(new Blob([`${JSON.stringify(file, null, 1)}\n`], { type: "application/json" }));
    const link = el("a", { href: url, download: name });
    document.body.append(link);
    link.click(), link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    saved = true;
    keep(), progress(), saefast.say(`saved as ${name}`);
  }

  document.addEventListener("keydown", (event) => {
    if (!data || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=text]")) return;
    const does = { n: next, s: save };
    CHOICES.forEach((_, i) => (does[i + 1] = () => current()?.answer(i)));
    if (Object.hasOwn(does, event.key)) event.preventDefault(), does[event.key]();
  });

  async function begin() {
    try {
      if (typeof DecompressionStream === "undefined") throw new Error("This page needs a browser of 2023 or later.");
      const found = await saefast.load("cards");
      await saefast.tokens.ready();
      data = found;
      place = `sheet-${data.commitment.slice(0, 16)}`;
      restore();
      by("cards").append(...data.cards.map(made));
      by("rater").addEventListener("input", keep);
      by("next").addEventListener("click", next);
      by("save").addEventListener("click", save);
      progress();
      performance.mark("ready");
    } catch (error) {
      problem(error);
    }
  }
  begin();
})();
