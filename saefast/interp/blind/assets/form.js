// The questions of a card: the interpretation, the items of the rubric, and one for each set. Numbers are radio buttons.
"use strict";

saefast.blind.form = (() => {
  const { el } = saefast;
  const { store, card } = saefast.blind;

  // A question with the numbers 0 to `most`. `row.answer(number)` answers it, `row.show(number, disabled)` shows what is answered.
  function question(name, text, most, ends, answer) {
    const inputs = Array.from({ length: most + 1 }, (_, number) => el("input", { type: "radio", name, value: number, id: `${name}-${number}`, onchange: () => answer(number) }));
    const choices = inputs.map((input, number) => el("label", { for: input.id, title: number === 0 ? ends[0] : number === most ? ends[1] : null }, input, el("span", {}, String(number))));
    const note = el("small", { class: "note" }, `0 ${ends[0]} · ${most} ${ends[1]}`);
    const row = el("fieldset", { class: "question", "data-name": name }, el("legend", {}, text), el("div", { class: "choices" }, choices), note);
    row.answer = (number) => number <= most && !row.disabled && (inputs[number].checked || answer(number), (inputs[number].checked = true));
    row.show = (number, disabled, why) => {
      inputs.forEach((input, i) => (input.checked = i === number));
      row.disabled = disabled;
      note.textContent = why ?? `0 ${ends[0]} · ${most} ${ends[1]}`;
    };
    row.focusIt = () => (inputs.find((input) => input.checked) ?? inputs[0]).focus({ preventScroll: true });
    return row;
  }

  // changed(rating): after every answer. at(row): a question is looked at.
  function make(data, one, changed, at) {
    let rating = store.of(one.id);
    const change = (changes) => ((rating = store.set(one.id, changes)), show(), changed(rating));
    const words = el("textarea", { id: "interpretation", rows: 3, maxlength: 2000, spellcheck: "true", oninput: () => change({ interpretation: words.value }) });
    const none = el("input", { type: "checkbox", id: "none", onchange: () => change({ none: none.checked }) });
    const items = data.rubric.filter(({ name }) => data.logits || (name !== "logits" && name !== "separated"))
      .map((item) => question(item.name, item.question, item.most, [item.least_means, item.most_means], (number) => change({ [item.name]: number })));
    const { most } = data.rubric.find(({ name }) => name === "tokens");
    const sets = one.sets.map((_, i) => question(`set-${i}`, `Do the outlined tokens of set ${card.letter(i)} fit your interpretation?`, most, ["none fits", "all fit"], (number) => change({ sets: rating.sets.map((old, j) => (j === i ? number : old)) })));
    const rows = [...items, ...sets];
    rows.forEach((row) => row.addEventListener("focusin", () => at(row)));

    function show() {
      if (words.value !== rating.interpretation) words.value = rating.interpretation;
      none.checked = rating.none;
      const closed = rating.none || !store.hasWords(rating);
      for (const row of items) {
        const perfect = row.dataset.name === "separated" && store.isPerfect(rating);
        row.show(rating[row.dataset.name], closed || perfect, perfect ? "all logits fit: nothing to separate" : undefined);
      }
      sets.forEach((row, i) => row.show(rating.sets[i], closed));
    }
    show();
    const element = el("form", { class: "rating", onsubmit: (event) => event.preventDefault() },
      el("h2", {}, el("label", { for: "interpretation" }, "Your interpretation ", el("small", {}, "of all intervals and logits"))), words,
      el("label", { class: "check", for: "none" }, none, "I can form none (0 points)"),
      items);
    return { element, rows, words, none, sets, rating: () => rating, open: () => rows.filter((row) => !row.disabled) };
  }
  return { make };
})();
