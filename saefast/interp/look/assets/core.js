// What everything else uses: elements, numbers, and files of data, which are scripts (pages from the file system cannot fetch).
"use strict";

const saefast = (() => {
  const build = document.documentElement.dataset.build;
  const taken = new Map(); // name -> [build, header, body] of a script that ran
  const files = new Map(); // name -> promise of its arrays and values
  const KEPT = 80; // files of data in memory
  const policy = window.trustedTypes?.createPolicy("saefast", { createScriptURL: (url) => url });

  // An element. Text is only ever set as text: nothing in the data is read as HTML.
  function el(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(properties)) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "class") element.className = value;
      else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  // A number with three significant digits; counts in full.
  function number(value, digits = 3) {
    if (value === null || value === undefined || Number.isNaN(value)) return "–";
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e5 || size < 1e-3) return value.toExponential(digits - 1).replace("e-", "e−").replace("e+", "e").replace(/^-/, "−");
    const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
    return value.toFixed(decimals).replace(/^-/, "−");
  }
  const count = (value) => value.toLocaleString("en-US");
  function percent(share) {
    if (share === 0) return "0 %";
    return share * 100 < 1e-3 ? `${(share * 100).toExponential(1).replace("e-", "e−")} %` : `${number(share * 100)} %`;
  }

  function bytesOf(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    const binary = atob(base64);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return bytes;
  }

  const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };

  // What pack.py packed.
  async function unpack(header, body) {
    const found = { ...header.values };
    if (!body) {
      for (const [key, kind] of header.arrays) found[key] = new TYPES[kind](0);
      return found;
    }
    const stream = new Blob([bytesOf(body)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    let offset = 0;
    for (const [key, kind, size] of header.arrays) {
      found[key] = new TYPES[kind](buffer, offset, size);
      offset += Math.ceil(found[key].byteLength / 8) * 8;
    }
    return found;
  }

  function take(name, ofBuild, header, body) {
    taken.set(name, [ofBuild, header, body]);
  }

  class Incomplete extends Error {}
  const again = "Write the site again (the command that wrote it replaces what is here), then reload this page.";

  async function opened(name) {
    const entry = taken.get(name);
    taken.delete(name);
    if (!entry) throw new Incomplete(`data/${name}.js is damaged. ${again}`);
    const [ofBuild, header, body] = entry;
    if (ofBuild !== build) {
      throw new Incomplete(`data/${name}.js is of another build than this page: the site was replaced, or is half written. ${again}`);
    }
    try {
      return await unpack(header, body);
    } catch (error) {
      throw new Incomplete(`data/${name}.js is damaged (${error.message}). ${again}`);
    }
  }

  function script(name) {
    return new Promise((resolve, reject) => {
      const element = document.createElement("script");
      const url = `data/${name}.js`;
      element.onload = () => (element.remove(), resolve());
      element.onerror = () => (element.remove(), reject(new Incomplete(`${url} is missing: this site is not complete. ${again}`)));
      element.src = policy ? policy.createScriptURL(url) : url;
      document.head.append(element);
    });
  }

  // The arrays and values of data/NAME.js. The files that were used last are kept.
  function load(name) {
    let file = files.get(name);
    files.delete(name);
    file ??= (taken.has(name) || name === "head" ? Promise.resolve() : script(name)).then(() => opened(name));
    files.set(name, file);
    file.catch(() => files.delete(name));
    for (const old of files.keys()) {
      if (files.size <= KEPT) break;
      if (old !== "head" && old !== "vocabulary" && old !== "explanations") files.delete(old);
    }
    return file;
  }

  function stored(key, value) {
    try {
      if (value === undefined) return localStorage.getItem(`saefast-${key}`);
      localStorage.setItem(`saefast-${key}`, value);
    } catch {} // see theme.js
    return null;
  }

  function problem(error) {
    const text = error instanceof Incomplete ? error.message : `Something is wrong with this page: ${error.message}`;
    if (!(error instanceof Incomplete)) console.error(error);
    return el("p", { class: "problem", role: "alert" }, text);
  }

  function say(text) {
    document.getElementById("status").textContent = text;
  }

  const pause = () => new Promise((resolve) => setTimeout(resolve));
  return { build, el, number, count, percent, take, load, stored, problem, say, pause, Incomplete };
})();
