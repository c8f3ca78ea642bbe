// @ts-check
// From ink to MNIST's form: the rules of `digitrec.pictures.mnist_form`, step by step, to the same grey levels.

/**
 * Scale ink to a 20 × 20 box, proportions kept, and lay its centre of mass on pixel (14, 14) of a 28 × 28 field.
 * @param {ArrayLike<number>} ink  h × w, 0 = paper, higher = more ink
 * @param {number} h @param {number} w
 * @returns {Uint8Array | null}  28 × 28, 0 to 255; null where there is no ink
 */
export function form(ink, h, w) {
  const edges = inked(ink, h, w);
  if (!edges) return null;
  const { top, left, rows, columns, most } = edges;
  const cut = new Float32Array(rows * columns);
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) cut[y * columns + x] = Math.max(0, ink[(top + y) * w + left + x]) / most;
  }
  const scale = 20 / Math.max(rows, columns);
  const height = Math.max(1, round(rows * scale)), width = Math.max(1, round(columns * scale));
  const across = resize(cut, rows, columns, width);
  const box = transposed(resize(transposed(across, rows, width), width, rows, height), width, height);
  return centred(levels(box), height, width);
}

/**
 * The smallest rectangle that holds all ink, and the most ink in a pixel.
 * @param {ArrayLike<number>} ink @param {number} h @param {number} w
 */
function inked(ink, h, w) {
  let top = h, bottom = -1, left = w, right = -1, most = 0;
  for (let i = 0; i < h * w; i++) {
    if (!(ink[i] > 0)) continue;
    const y = Math.floor(i / w), x = i % w;
    top = Math.min(top, y);
    bottom = y;
    left = Math.min(left, x);
    right = Math.max(right, x);
    most = Math.max(most, ink[i]);
  }
  return most > 0 ? { top, left, rows: bottom - top + 1, columns: right - left + 1, most } : null;
}

/** Round to whole numbers, halves to the even one, as NumPy does. @param {number} value */
function round(value) {
  const down = Math.floor(value);
  if (value - down !== 0.5) return Math.round(value);
  return down % 2 ? down + 1 : down;
}

/** The bicubic kernel with a = -0.5 (Keys, IEEE Trans. ASSP 29(6), 1981). @param {number} x */
function bicubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
}

/**
 * Change the width of each row. Where it shrinks, the kernel grows by as much, as in Pillow, so that no pixel is lost.
 * @param {Float32Array} pixels  h × w @param {number} h @param {number} w @param {number} width  the new one
 */
function resize(pixels, h, w, width) {
  if (width === w) return pixels;
  const scale = w / width, grown = Math.max(scale, 1), reach = 2 * grown;
  const result = new Float32Array(h * width);
  for (let x = 0; x < width; x++) {
    const centre = (x + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5)), last = Math.min(w, Math.trunc(centre + reach + 0.5));
    const weights = [];
    for (let i = first; i < last; i++) weights.push(bicubic((i - centre + 0.5) / grown));
    const whole = weights.reduce((sum, weight) => sum + weight, 0);
    for (let y = 0; y < h; y++) {
      let sum = 0;
      for (let i = first; i < last; i++) sum += (pixels[y * w + i] * weights[i - first]) / whole;
      result[y * width + x] = sum;
    }
  }
  return result;
}

/** @param {Float32Array} pixels  h × w @param {number} h @param {number} w */
function transposed(pixels, h, w) {
  return pixels.map((_, i) => pixels[(i % h) * w + Math.floor(i / h)]);
}

/** Whole grey levels from 0 to 255, the darkest 255. @param {Float32Array} box */
function levels(box) {
  const most = box.reduce((most, value) => Math.max(most, value), 0);
  return Uint8Array.from(box, (value) => round(Math.fround(Math.fround(255 * Math.max(0, value)) / most)));
}

/**
 * Lay a box on a field of 28 × 28 so that its centre of mass is nearest to (14, 14), but all of it is on the field.
 * @param {Uint8Array} box @param {number} height @param {number} width
 */
function centred(box, height, width) {
  let mass = 0, rows = 0, columns = 0;
  box.forEach((value, i) => {
    mass += value;
    rows += value * Math.floor(i / width);
    columns += value * (i % width);
  });
  const down = Math.min(Math.max(round(14 - rows / mass), 0), 28 - height);
  const across = Math.min(Math.max(round(14 - columns / mass), 0), 28 - width);
  const field = new Uint8Array(784);
  box.forEach((value, i) => (field[(down + Math.floor(i / width)) * 28 + across + (i % width)] = value));
  return field;
}
