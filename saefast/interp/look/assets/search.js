// Text in examples and explanations. A file of the search has the strongest examples of 1,024 latents; all examples are in the
// files of the pages, which takes longer. Nothing blocks the page: a file is read and searched, then the page has its turn.
"use strict";

saefast.search = (() => {
  const texts = new Map(); // number of a file -> [first example of each latent, text of each example]

  // What to look for -> a function from text to [begin, end] of the first match, or null. Throws SyntaxError.
  function matcher(query, { regex, exact }) {
    if (regex) {
      const pattern = new RegExp(query, exact ? "u" : "iu");
      return (text) => {
        const found = pattern.exec(text);
        return found && [found.index, found.index + found[0].length];
      };
    }
    const wanted = exact ? query : query.toLowerCase();
    return (text) => {
      const at = (exact ? text : text.toLowerCase()).indexOf(wanted);
      return at < 0 ? null : [at, at + wanted.length];
    };
  }

  async function textsOf(number) {
    if (!texts.has(number)) {
      const { examples, lengths, tokens } = await saefast.load(`search-${number}`);
      const firsts = [0];
      const found = [];
      let at = 0;
      for (const n of examples) firsts.push(firsts.at(-1) + n);
      for (const length of lengths) found.push(saefast.tokens.text(tokens.subarray(at, (at += length))));
      texts.set(number, [firsts, found]);
    }
    return texts.get(number);
  }

  // Calls found(row, {text, span}) for each latent that matches and progress(latents searched) after each file; ends early when
  // stopped() says so.
  async function run(query, options, { found, progress, stopped }) {
    const match = matcher(query, options);
    const { data } = saefast;
    data.explained.forEach((all, row) => {
      for (const { explanation } of all) {
        const span = match(explanation);
        if (span) found(row, { text: explanation, span, explanation: true });
      }
    });
    const starts = options.all ? data.head.starts : data.head.searched;
    let turn = performance.now();
    for (let number = 0; number + 1 < starts.length; number++) {
      if (options.all) {
        const latents = await data.everyLatent(number);
        latents.forEach((latent, i) => {
          for (const example of latent.examples) {
            if (example.group === "inactive") continue;
            const text = saefast.tokens.text(example.tokens);
            const span = match(text);
            if (span) return found(starts[number] + i, { text, span });
          }
        });
      } else {
        const [firsts, examples] = await textsOf(number);
        for (let i = 0; i + 1 < firsts.length; i++) {
          for (let j = firsts[i]; j < firsts[i + 1]; j++) {
            const span = match(examples[j]);
            if (span) {
              found(starts[number] + i, { text: examples[j], span });
              break;
            }
          }
        }
      }
      if (stopped()) return;
      progress(starts[number + 1]);
      if (performance.now() - turn > 12) await saefast.pause(), (turn = performance.now());
      if (stopped()) return;
    }
  }
  // The strongest example of a latent: its tokens, and which of them is that of the example. Nothing for one that is never active.
  async function strongest(row) {
    const starts = saefast.data.head.searched;
    const number = saefast.data.fileOf(starts, row);
    const file = await saefast.load(`search-${number}`);
    if (!file.places) { // of the first example of each latent
      file.places = new Uint32Array(file.examples.length);
      file.firsts = new Uint32Array(file.examples.length);
      for (let i = 0, j = 0, at = 0; i < file.examples.length; i++) {
        (file.firsts[i] = j), (file.places[i] = at);
        for (const end = j + file.examples[i]; j < end; j++) at += file.lengths[j];
      }
    }
    const i = row - starts[number];
    if (!file.examples[i]) return null;
    const j = file.firsts[i];
    return { tokens: file.tokens.subarray(file.places[i], file.places[i] + file.lengths[j]), peak: file.peaks[j] };
  }
  return { run, matcher, strongest };
})();
