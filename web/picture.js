// @ts-check
// A pasted, dropped or chosen picture of a digit: from a file to ink.

import { SIDE } from "./draw.js";

const MAX_BYTES = 30_000_000, MAX_PIXELS = 100_000_000;
const MOVING = /^GIF8[^]*!\xf9\x04[^]*!\xf9\x04|^.PNG[^]*acTL|^RIFF[^]{4}WEBP[^]*ANIM/; // more than one frame

/**
 * Read the digit in a picture file: dark on light or light on dark, of any size.
 * @param {Blob} file
 * @returns {Promise<{ink: Uint8ClampedArray, animated: boolean}>}  SIDE × SIDE
 * @throws {Error} with a sentence for the reader, where the file is no picture, too large, or blank
 */
export async function readPicture(file) {
  if (file.size > MAX_BYTES) throw new Error(`This file has ${Math.round(file.size / 1e6)} MB; 30 MB is the limit.`);
  const start = new TextDecoder("latin1").decode(await file.slice(0, 1e6).arrayBuffer());
  const ink = thickened(inkOfGreys(await greys(file)));
  return { ink, animated: MOVING.test(start) };
}

/**
 * Greys of a picture, 0 to 255, at most SIDE a side. The browser says how large a picture is before it unpacks it.
 * @param {Blob} file
 */
async function greys(file) {
  const image = new Image(), url = URL.createObjectURL(file);
  try {
    await new Promise((done, failed) => {
      image.onload = done;
      image.onerror = () => failed(new Error("This file is no picture that the browser can read."));
      image.src = url;
    });
    const { naturalWidth: width, naturalHeight: height } = image;
    if (!width || !height) throw new Error("This picture has no size in pixels.");
    if (width * height > MAX_PIXELS) {
      throw new Error(`This picture has ${width} × ${height} pixels; 100 million is the limit.`);
    }
    const canvas = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.imageSmoothingQuality = "high";
    const [w, h] = [width, height].map((side) => Math.max(1, Math.round((side * SIDE) / Math.max(width, height))));
    context.drawImage(image, 0, 0, w, h); // of an animated picture, the first frame
    return onPaper(context.getImageData(0, 0, w, h));
  } finally {
    URL.revokeObjectURL(url);
  }
}

/**
 * Greys of coloured pixels; a transparent ground becomes white paper, or black where white would hide what is drawn.
 * @param {ImageData} image
 */
function onPaper({ data, width: w, height: h }) {
  let light = 0, drawn = 0;
  const grey = (/** @type {number} */ i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2];
  for (let i = 0; i < w * h; i++) {
    if (data[4 * i + 3] > 127) [light, drawn] = [light + grey(i), drawn + 1];
  }
  const paper = light / drawn > 170 && drawn < w * h ? 0 : 255;
  const values = new Float32Array(w * h).map((_, i) => paper + ((grey(i) - paper) * data[4 * i + 3]) / 255);
  return { values, w, h };
}

/**
 * The ink on a square: how much darker, or lighter, than its paper each place is. Where a shadow falls across the
 * photograph, the paper under it is dark too.
 * @param {{values: Float32Array, w: number, h: number}} greys
 */
function inkOfGreys({ values, w, h }) {
  const onRim = (/** @type {number} */ i) => i < w || i >= w * (h - 1) || i % w === 0 || i % w === w - 1;
  const rim = [...values].filter((_, i) => onRim(i)).sort((a, b) => a - b);
  const [least, most] = range(values), inverted = rim[rim.length >> 1] < (least + most) / 2;
  const upright = inverted ? values.map((value) => 255 - value) : values;
  const paper = paperOf(upright, w, h), ink = upright.map((value, i) => paper[i] - value);
  const darkest = range(ink)[1], limit = threshold(ink);
  if (!(darkest > 24)) throw new Error("This picture looks blank: nothing stands out from its paper.");
  const square = new Uint8ClampedArray(SIDE * SIDE), top = (SIDE - h) >> 1, left = (SIDE - w) >> 1;
  ink.forEach((value, i) => {
    if (value > limit / 2) square[(top + Math.floor(i / w)) * SIDE + left + (i % w)] = (255 * value) / darkest;
  });
  return square;
}

/** The least and the most of many numbers. @param {Float32Array} values */
function range(values) {
  const extreme = (/** @type {typeof Math.min} */ choose) => values.reduce((a, b) => choose(a, b), values[0]);
  return [extreme(Math.min), extreme(Math.max)];
}

/**
 * The paper without its strokes: the lightest grey around each place, then the darkest of those, by rows and by columns
 * (a morphological closing).
 * @param {Float32Array} values @param {number} w @param {number} h
 */
function paperOf(values, w, h) {
  const reach = Math.max(1, Math.floor(Math.min(w, h) / 6));
  let paper = values;
  for (const choose of [Math.max, Math.min]) {
    for (const [step, length] of [[1, w], [w, h]]) {
      const before = paper;
      paper = before.map((_, i) => {
        const at = Math.floor(i / step) % length, last = Math.min(length - 1, at + reach);
        let best = before[i];
        for (let near = Math.max(0, at - reach); near <= last; near++) {
          best = choose(best, before[i + (near - at) * step]);
        }
        return best;
      });
    }
  }
  return paper;
}

/**
 * The threshold that best parts values in two (Otsu, IEEE Trans. SMC 9(1), 1979).
 * @param {Float32Array} values  0 to 255
 */
function threshold(values) {
  const counts = new Array(256).fill(0);
  for (const value of values) counts[Math.floor(value)]++;
  const total = counts.reduce((sum, count, grey) => sum + count * grey, 0);
  let [below, sum, best, found] = [0, 0, 0, 0];
  counts.forEach((count, grey) => {
    [below, sum] = [below + count, sum + count * grey];
    const between = (total * below - sum * values.length) ** 2 / (below * (values.length - below));
    if (between > best) [best, found] = [between, grey + 1];
  });
  return found;
}

/**
 * Ink whose strokes are at least a ninth as wide as the digit is long: a thin pen would vanish on 28 × 28 pixels.
 * @param {Uint8ClampedArray} ink
 */
function thickened(ink) {
  const dark = (/** @type {number} */ i) => ink[i] > 127;
  const places = [...ink.keys()].filter(dark);
  const [top, bottom] = range(Float32Array.from(places, (i) => Math.floor(i / SIDE)));
  const [left, right] = range(Float32Array.from(places, (i) => i % SIDE));
  const length = 1 + Math.max(bottom - top, right - left);
  const rim = places.filter((i) => ![i - 1, i + 1, i - SIDE, i + SIDE].every(dark)).length;
  const radius = (length / 9 - (2 * places.length) / rim) / 2;
  if (radius < 0.5) return ink;
  const wide = ink.slice(), reach = Math.ceil(radius);
  for (const i of places) {
    for (let y = -reach; y <= reach; y++) {
      for (let x = -reach; x <= reach; x++) {
        const at = i + y * SIDE + x, inside = (i % SIDE) + x >= 0 && (i % SIDE) + x < SIDE;
        if (inside && Math.hypot(x, y) <= radius && wide[at] < ink[i]) wide[at] = ink[i];
      }
    }
  }
  return wide;
}
