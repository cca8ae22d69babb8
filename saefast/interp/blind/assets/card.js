// The examples of a card: all its intervals from the strongest down, and the sets that are rated, which do not say where they are from.
"use strict";

saefast.blind.card = (() => {
  const { el } = saefast;

  // The window of example i. In a set only the token that was drawn is marked, not how strongly it is active.
  function example(data, card, i, inSet) {
    const { before, per_interval, n_intervals } = data.config;
    const tokens = card.examples[i].map((number, at) => {
      const element = saefast.tokens.token(number);
      const level = card.levels ? card.levels[i][at] : at === before ? Math.floor(i / per_interval) + 1 : 0;
      if (!inSet) saefast.tokens.heat(element, level / n_intervals);
      if (at === before) element.classList.add("peak");
      return element;
    });
    return el("li", { class: "example whole" }, tokens);
  }

  function interval(data, card, number) {
    const { per_interval, n_intervals } = data.config;
    const level = el("span", { class: "level", "aria-hidden": "true" });
    level.style.setProperty("--size", ((number + 1) / n_intervals).toFixed(3));
    const note = number === n_intervals - 1 ? "the strongest" : number === 0 ? "the weakest" : "";
    const examples = Array.from({ length: per_interval }, (_, i) => example(data, card, number * per_interval + i, false));
    return el("section", { class: "interval" }, el("h3", {}, level, `Interval ${number + 1} of ${n_intervals} `, el("small", {}, note)), el("ul", {}, examples));
  }

  const letter = (i) => String.fromCharCode(65 + (i % 26)) + (i < 26 ? "" : String(Math.floor(i / 26) + 1));

  const intervals = (data, card) => Array.from({ length: data.config.n_intervals }, (_, i) => interval(data, card, data.config.n_intervals - 1 - i));
  // questions: of each set, shown under its examples.
  const sets = (data, card, questions) => card.sets.map((some, i) => {
    const head = el("h3", {}, `Set ${letter(i)} `, el("small", {}, "all from one interval"));
    return el("section", { class: "interval set" }, head, el("ul", {}, some.map((one) => example(data, card, one, true))), questions[i]);
  });

  function logits(data, card) {
    if (!data.logits) return null;
    const rows = card.logits.map(([token, size]) => {
      const bar = el("span", { class: "weight", "aria-hidden": "true" });
      bar.style.setProperty("--size", (size / 20).toFixed(2));
      return el("li", {}, bar, saefast.tokens.token(token));
    });
    return el("div", { class: "box" }, el("h2", {}, "Raised logits ", el("small", {}, "the largest first; bars are relative")), el("ol", { class: "logits" }, rows));
  }
  return { intervals, sets, logits, letter };
})();
