// What was rated: kept in this browser by the name of the rater, saved to a file, and read from one.
"use strict";

saefast.blind = {};
saefast.blind.store = (() => {
  const FORMAT = "saefast-blind-ratings";
  let data, place; // the cards of this page; the key of the storage
  let rater = "";
  let ratings = {};
  let unsaved = false; // changes that are in no file
  let keeps = true; // whether the browser keeps anything for this page

  // SHA-256 of ASCII text, in hexadecimal digits: crypto.subtle is not there on pages of plain http.
  const [FIRST, ROUNDS] = (() => {
    const fraction = (x) => ((x - Math.floor(x)) * 2 ** 32) >>> 0;
    const primes = [];
    for (let n = 2; primes.length < 64; n++) if (primes.every((prime) => n % prime)) primes.push(n);
    return [primes.slice(0, 8).map((prime) => fraction(Math.sqrt(prime))), primes.map((prime) => fraction(Math.pow(prime, 1 / 3)))];
  })();
  function sha256(text) {
    const words = new Uint32Array(((text.length + 8) >> 6) * 16 + 16);
    for (let i = 0; i < text.length; i++) words[i >> 2] |= text.charCodeAt(i) << (24 - (i % 4) * 8);
    words[text.length >> 2] |= 0x80 << (24 - (text.length % 4) * 8);
    words[words.length - 2] = Math.floor(text.length / 2 ** 29);
    words[words.length - 1] = text.length << 3;
    const turn = (x, n) => (x >>> n) | (x << (32 - n));
    const hash = Uint32Array.from(FIRST);
    const w = new Uint32Array(64);
    for (let block = 0; block < words.length; block += 16) {
      let [a, b, c, d, e, f, g, h] = hash;
      for (let i = 0; i < 64; i++) {
        if (i < 16) w[i] = words[block + i];
        else {
          const s0 = turn(w[i - 15], 7) ^ turn(w[i - 15], 18) ^ (w[i - 15] >>> 3);
          const s1 = turn(w[i - 2], 17) ^ turn(w[i - 2], 19) ^ (w[i - 2] >>> 10);
          w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        const t1 = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUNDS[i] + w[i]) | 0;
        const t2 = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        (h = g), (g = f), (f = e), (e = (d + t1) | 0), (d = c), (c = b), (b = a), (a = (t1 + t2) | 0);
      }
      [a, b, c, d, e, f, g, h].forEach((one, i) => (hash[i] += one));
    }
    return Array.from(hash, (word) => word.toString(16).padStart(8, "0")).join("");
  }

  // As Python's json.dumps(value, sort_keys=True, separators=(",", ":")): ratings.py makes the same checksum.
  function canonical(value) {
    if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
    if (value && typeof value === "object") return `{${Object.keys(value).sort().map((key) => `${canonical(key)}:${canonical(value[key])}`).join(",")}}`;
    return JSON.stringify(value).replace(/[\u007f-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`);
  }
  const checksum = ({ checksum: _, ...contents }) => `sha256-${sha256(canonical(contents))}`;

  function blank() {
    const rating = { interpretation: "", none: false, sets: data.cards[0].sets.map(() => null) };
    for (const { name } of data.rubric) rating[name] = null;
    return rating;
  }
  const known = (id) => Object.hasOwn(ratings, id);
  const of = (id) => (known(id) ? ratings[id] : blank());

  // The items of the rubric that are asked for, as rubric.py has it.
  const asked = (rating) => data.rubric.filter(({ name }) => (data.logits || (name !== "logits" && name !== "separated")) && !(name === "separated" && isPerfect(rating)));
  const isPerfect = (rating) => data.logits && rating.logits === data.rubric.find(({ name }) => name === "logits").most;
  const hasWords = (rating) => rating.interpretation.trim() !== "";
  const answered = (rating) => rating.none || (hasWords(rating) && asked(rating).every(({ name }) => rating[name] !== null) && rating.sets.every((one) => one !== null));
  const count = () => data.cards.filter(({ id }) => answered(of(id))).length;

  function file() {
    const some = {};
    for (const { id } of data.cards) if (known(id)) some[id] = ratings[id];
    const found = { format: FORMAT, version: 1, commitment: data.commitment, rater, ratings: some };
    return { ...found, checksum: checksum(found) };
  }

  function keep() {
    const text = JSON.stringify({ ratings, unsaved });
    saefast.stored(`${place}-${rater}`, text);
    saefast.stored(place, rater);
    keeps = saefast.stored(`${place}-${rater}`) === text;
    // only while it is needed: pages with such a listener are slow to leave
    window[unsaved && !keeps ? "addEventListener" : "removeEventListener"]("beforeunload", ask);
  }
  const ask = (event) => event.preventDefault();

  function set(id, changes) {
    const rating = { ...of(id), ...changes };
    if (isPerfect(rating)) rating.separated = null; // nothing to separate
    ratings[id] = rating;
    unsaved = true;
    keep();
    return rating;
  }

  // Begin as this rater, or go on.
  function begin(name) {
    rater = name.trim();
    ratings = {};
    unsaved = false;
    try {
      const found = JSON.parse(saefast.stored(`${place}-${rater}`) ?? "{}");
      for (const { id } of data.cards) if (Object.hasOwn(found.ratings ?? {}, id)) ratings[id] = { ...blank(), ...found.ratings[id] };
      unsaved = Boolean(found.unsaved);
    } catch {} // not what this page wrote
    keep();
  }

  function save() {
    const name = `ratings-${rater.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "rater"}-${count()}-of-${data.cards.length}.json`;
    const url = URL.createObjectURL(new Blob([`${JSON.stringify(file(), null, 1)}\n`], { type: "application/json" }));
    const link = saefast.el("a", { href: url, download: name });
    document.body.append(link);
    link.click(), link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
    unsaved = false;
    keep();
    return name;
  }

  // Ratings from a file, in place of those of the same cards. What is wrong with it is an error with a sentence.
  function load(text) {
    let found;
    try {
      found = JSON.parse(text);
    } catch {} // said below
    if (found?.format !== FORMAT || typeof found.rater !== "string" || typeof found.ratings !== "object") throw new Error("This is no file of ratings.");
    if (found.commitment !== data.commitment) throw new Error("These ratings belong to another page of cards.");
    if (found.checksum !== checksum(found)) throw new Error("This file was edited or damaged after it was saved.");
    begin(found.rater);
    for (const { id } of data.cards) if (Object.hasOwn(found.ratings, id)) ratings[id] = { ...blank(), ...found.ratings[id] };
    keep();
  }

  function open(cards) {
    data = cards;
    place = `blind-${data.commitment.slice(0, 16)}`;
    return saefast.stored(place) ?? "";
  }

  return { open, begin, set, of, asked, answered, hasWords, isPerfect, count, save, load, sha256, canonical, name: () => rater, keeps: () => keeps, unsaved: () => unsaved };
})();
