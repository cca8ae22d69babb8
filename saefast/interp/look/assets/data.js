// The list of all latents, and the page of each, from the files that latents.py and lists.py describe.
"use strict";

saefast.data = (() => {
  const { load } = saefast;
  const data = { head: null, n: 0, explained: [], scoreNames: [] };
  let rows; // latent -> its place in the list, or nothing when all are there

  data.ready = async () => {
    data.head = await load("head");
    const { latent } = data.head;
    data.n = latent.length;
    const all = data.n === data.head.d_sae;
    rows = all ? null : new Map(Array.from(latent, (one, row) => [one, row]));
    data.otherRows = data.head.compared ? new Map(Array.from(data.head["other.latent"], (one, row) => [one, row])) : null;
  };

  // Explanations come after the list is there. row -> those of the latent.
  data.readExplanations = async () => {
    const names = new Set();
    for (const one of (await load("explanations")).explanations) {
      const row = data.rowOf(one.latent);
      (data.explained[row] ??= []).push(one);
      Object.keys(one.scores).forEach((name) => names.add(name));
    }
    data.scoreNames = [...names].sort();
  };

  data.rowOf = (latent) => {
    const inside = Number.isInteger(latent) && latent >= 0 && latent < data.head.d_sae;
    return !inside ? undefined : rows ? rows.get(latent) : latent;
  };
  data.density = (row) => data.head.count[row] / data.head.n_rows;
  data.bestScore = (row, name) => {
    const scores = (data.explained[row] ?? []).map((one) => one.scores[name]).filter((score) => Number.isFinite(score));
    return scores.length ? Math.max(...scores) : NaN;
  };

  // Tokens at which a latent is most active, each once, the most frequent first.
  data.peaks = (row) => {
    const { peaks } = data.head;
    const each = peaks.length / data.n;
    const times = new Map();
    for (let i = row * each; i < (row + 1) * each; i++) {
      if (!saefast.tokens.none(peaks[i])) times.set(peaks[i], (times.get(peaks[i]) ?? 0) + 1);
    }
    return [...times.keys()].sort((a, b) => times.get(b) - times.get(a));
  };

  // The last start that is not after `row`.
  data.fileOf = (starts, row) => {
    let low = 0;
    let high = starts.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (starts[middle] <= row) low = middle;
      else high = middle;
    }
    return low;
  };

  function sums(counts) {
    const offsets = new Uint32Array(counts.length + 1);
    for (let i = 0; i < counts.length; i++) offsets[i + 1] = offsets[i] + counts[i];
    return offsets;
  }

  const GROUPS = ["top", "interval", "quantile", "random", "inactive"];
  const whole = new Uint32Array(1);
  const real = new Float32Array(whole.buffer);
  const bfloat = (half) => ((whole[0] = half << 16), real[0]);

  // What a file says of its latent number i.
  function latentOf(file, i) {
    file.firstExample ??= sums(file.n_examples);
    file.firstActive ??= sums(file.n_active);
    if (file.effects) file.firstEffect ??= sums(file.n_effects);
    const n = file.latent.length;
    const part = (name) => {
      const size = file[name].length / n;
      return file[name].subarray(i * size, (i + 1) * size);
    };
    const found = { latent: file.latent[i], histogram: part("histogram"), examples: [], tables: {} };
    for (const name of ["mean", "variance", "skewness", "kurtosis", "energy"]) found[name] = file[name][i];
    for (const key of Object.keys(file)) {
      const [table, field] = key.split(".");
      if (field) (found.tables[table] ??= {})[field] = part(key);
    }
    for (let j = file.firstExample[i]; j < file.firstExample[i + 1]; j++) {
      const length = file.length[j];
      const example = {
        group: GROUPS[file.group[j]], bin: file.bin[j], act: file.act[j], peak: file.peak[j], start: file.start[j],
        context: file.context[j], document: file.document[j], split: file.split[j] ? "score" : "explain",
        tokens: file.pool.subarray(file.place[j], file.place[j] + length), acts: new Float32Array(length), effects: null,
      };
      for (let k = file.firstActive[j]; k < file.firstActive[j + 1]; k++) example.acts[file.at[k]] = file.acts[k];
      if (file.effects && file.n_effects[j]) {
        example.effects = Float32Array.from(file.effects.subarray(file.firstEffect[j], file.firstEffect[j + 1]), bfloat);
      }
      found.examples.push(example);
    }
    return found;
  }

  data.latent = async (row) => {
    const number = data.fileOf(data.head.starts, row);
    const found = latentOf(await load(`latents-${number}`), row - data.head.starts[number]);
    return { ...found, row, count: data.head.count[row], max: data.head.max[row] };
  };

  data.otherLatent = async (latent) => {
    const row = data.otherRows.get(latent);
    const starts = data.head["other.starts"];
    const number = data.fileOf(starts, row);
    const file = await load(`other-${number}`);
    const i = row - starts[number];
    return { ...latentOf(file, i), count: file.count[i], max: file.max[i] };
  };

  // All examples of all latents of a file, for the search.
  data.everyLatent = async (number) => {
    const file = await load(`latents-${number}`);
    return Array.from(file.latent, (_, i) => latentOf(file, i));
  };
  return data;
})();
