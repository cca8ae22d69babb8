// Tokens as what they are: text, and what cannot be seen or is no text by a sign. Copying gives the text itself.
"use strict";

saefast.tokens = (() => {
  const { el } = saefast;
  const LONG = 120; // characters of a token that are shown
  const strict = new TextDecoder("utf-8", { fatal: true });
  const UNSEEN = /[\u0000-\u001f\u007f-\u00a0\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffc]|[\u{e0000}-\u{e0fff}]/u;
  const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]|[\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;
  const SIGNS = { "\n": "↵", "\t": "→", "\r": "␍" };
  let bytes, offsets, ids, special; // of the vocabulary of this site
  const made = new Map(); // token -> element to clone

  async function ready() {
    if (offsets) return;
    const found = await saefast.load("vocabulary");
    offsets = new Uint32Array(found.lengths.length + 1);
    for (let i = 0; i < found.lengths.length; i++) offsets[i + 1] = offsets[i] + found.lengths[i];
    ({ bytes, ids, special } = found);
  }

  const none = (token) => token >= ids.length;
  const rawOf = (token) => bytes.subarray(offsets[token], offsets[token + 1]);
  const hex = (some) => `⟨${Array.from(some, (byte) => byte.toString(16).padStart(2, "0")).join(" ")}⟩`;

  // Bytes as text where they are UTF-8, [text, is text] after another.
  function partsOf(raw) {
    try {
      return [[strict.decode(raw), true]];
    } catch {} // not whole characters: one after another
    const parts = [];
    let text = "";
    let other = [];
    const end = () => {
      if (text) parts.push([text, true]);
      if (other.length) parts.push([hex(other), false]);
      (text = ""), (other = []);
    };
    for (let i = 0; i < raw.length; ) {
      const size = raw[i] < 0x80 ? 1 : raw[i] < 0xe0 ? 2 : raw[i] < 0xf0 ? 3 : 4;
      try {
        const character = strict.decode(raw.subarray(i, i + size));
        if (other.length) end();
        text += character;
        i += size;
      } catch {
        if (text) end();
        other.push(raw[i++]);
      }
    }
    end();
    return parts;
  }

  const sign = (text) => el("i", { class: "sign" }, text);

  function shownText(text, element) {
    let plain = "";
    let first = true;
    const end = () => {
      if (plain) element.append(plain);
      plain = "";
    };
    const characters = Array.from(text);
    const joins = characters.length > 1; // joiners between letters shape them; alone they are a sign
    for (const [i, character] of characters.slice(0, LONG).entries()) {
      const code = character.codePointAt(0);
      if (character === " ") {
        const alone = characters[i + 1] !== " " && (i === 0 || characters[i - 1] !== " ");
        if (alone && characters.length > 1) {
          if (first) element.classList.add("space");
          plain += " ";
        } else end(), element.append(sign("·"));
      } else if (SIGNS[character]) {
        end(), element.append(sign(SIGNS[character]));
        if (character === "\n") element.lastChild.classList.add("newline");
      } else if (code < 0x20 || code === 0x7f) end(), element.append(sign(hex([code])));
      else if (UNSEEN.test(character) && !(joins && code >= 0xfe00 && code <= 0xfe0f)) {
        end(), element.append(sign(`⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`));
      } else if (!joins && (code === 0x200c || code === 0x200d)) end(), element.append(sign(`⟨U+${code.toString(16).toUpperCase()}⟩`));
      else {
        if (first && /\p{M}/u.test(character)) element.append(sign("◌"));
        plain += character;
      }
      first = false;
    }
    end();
    if (characters.length > LONG) element.append(sign(`… ⟨${saefast.count(characters.length)} characters⟩`));
  }

  function make(token) {
    if (none(token)) return sign("–");
    const raw = rawOf(token);
    const parts = partsOf(raw);
    const isolated = parts.some(([text, isText]) => isText && RIGHT_TO_LEFT.test(text));
    const element = el(isolated ? "bdi" : "span", { class: "token", "data-t": token });
    for (const [text, isText] of parts) isText ? shownText(text, element) : element.append(sign(text));
    if (!raw.length) element.append(sign(`⟨${ids[token]}⟩`));
    if (special[token]) element.classList.add("special");
    return element;
  }

  // A new element that shows a token.
  function token(number) {
    let element = made.get(number);
    if (!element) made.set(number, (element = make(number)));
    return element.cloneNode(true);
  }

  // Tokens as the text that they are part of.
  function text(numbers) {
    let size = 0;
    for (const number of numbers) if (!none(number)) size += offsets[number + 1] - offsets[number];
    const all = new Uint8Array(size);
    let at = 0;
    for (const number of numbers) {
      if (none(number)) continue;
      all.set(rawOf(number), at);
      at += offsets[number + 1] - offsets[number];
    }
    return new TextDecoder().decode(all);
  }

  // Colour by activation: 0 to 1 of the largest.
  function heat(element, share, title) {
    if (share > 0) {
      element.classList.add("on");
      element.style.setProperty("--a", (0.08 + 0.92 * Math.min(1, share)).toFixed(3));
    }
    if (title) element.title = title;
    return element;
  }

  // What is copied is the text of the tokens, not the signs that stand for what cannot be seen.
  document.addEventListener("copy", (event) => {
    const selection = document.getSelection();
    if (!offsets || !selection.rangeCount) return;
    const copied = selection.getRangeAt(0).cloneContents();
    if (!copied.querySelector("[data-t]")) return;
    const numbers = Array.from(copied.querySelectorAll("[data-t]"), (element) => Number(element.dataset.t));
    const rows = copied.querySelectorAll(".example, .row");
    const lines = rows.length
      ? Array.from(rows, (row) => Array.from(row.querySelectorAll("[data-t]"), (element) => Number(element.dataset.t)))
      : [numbers];
    event.clipboardData.setData("text/plain", lines.map(text).join("\n"));
    event.preventDefault();
  });

  return { ready, token, text, heat, none, bytesOf: rawOf, idOf: (number) => ids[number], isSpecial: (number) => special[number] };
})();
