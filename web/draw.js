// @ts-check
// The paper: strokes and pictures laid on it, undo, and the ink that they leave.

/** Pixels along each side of the square in which everything is measured. */
export const SIDE = 280;
const PEN = 20; // how wide a stroke looks on the paper

/** @typedef {[number, number]} Point  across and down, 0 to SIDE */
/** @typedef {{stroke: Point[]} | {picture: Uint8ClampedArray}} Item  a picture is SIDE × SIDE of ink, 0 to 255 */

/** What lies on the paper, and what lay on it before each change. */
export class Paper {
  /** @type {Item[]} */ items = [];
  /** @type {Item[][]} */ past = [];
  /** @type {Item | null} */ open = null; // the stroke that is being drawn

  /** @param {Item[]} items */
  change(items) {
    this.past.push(this.items);
    this.items = items;
    this.open = null;
  }

  /** @param {Item} item */
  add(item) {
    this.change([...this.items, item]);
    this.open = item;
  }

  /** Lengthen the stroke that is being drawn. @param {Point} point */
  extend(point) {
    if (this.open && "stroke" in this.open) this.open.stroke.push(point);
  }

  undo() {
    this.items = this.past.pop() ?? [];
    this.open = null;
  }

  clear() {
    if (this.items.length) this.change([]);
  }
}

/**
 * A pen an eighth as wide as the drawing is long, as the digits of MNIST have it: a small drawing gets no blot and a
 * large one no hairline.
 * @param {Point[]} points
 */
export function penWidth(points) {
  const across = points.map(([x]) => x), down = points.map(([, y]) => y);
  const length = Math.max(Math.max(...across) - Math.min(...across), Math.max(...down) - Math.min(...down));
  return Math.min(32, Math.max(6, length / 8));
}

/**
 * The ink of all that lies on the paper, SIDE × SIDE, 0 to 255. It is computed, not read back from the screen: some
 * browsers blur what a page reads there.
 * @param {Item[]} items
 */
export function inkOf(items) {
  const ink = new Uint8ClampedArray(SIDE * SIDE);
  const strokes = items.flatMap((item) => ("stroke" in item ? [item.stroke] : []));
  const radius = penWidth(strokes.flat()) / 2;
  for (const stroke of strokes) {
    stroke.forEach((point, i) => line(ink, stroke[Math.max(0, i - 1)], point, radius));
  }
  for (const item of items) {
    if ("picture" in item) item.picture.forEach((value, i) => (ink[i] = Math.max(ink[i], value)));
  }
  return ink;
}

/**
 * A straight line with round ends. Pixels on its rim are as dark as the part of them that it covers.
 * @param {Uint8ClampedArray} ink @param {Point} from @param {Point} to @param {number} radius
 */
function line(ink, [x0, y0], [x1, y1], radius) {
  const reach = radius + 1, dx = x1 - x0, dy = y1 - y0, square = dx * dx + dy * dy || 1;
  const left = Math.max(0, Math.floor(Math.min(x0, x1) - reach));
  const right = Math.min(SIDE - 1, Math.ceil(Math.max(x0, x1) + reach));
  const top = Math.max(0, Math.floor(Math.min(y0, y1) - reach));
  const bottom = Math.min(SIDE - 1, Math.ceil(Math.max(y0, y1) + reach));
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const px = x + 0.5 - x0, py = y + 0.5 - y0;
      const along = Math.min(1, Math.max(0, (px * dx + py * dy) / square));
      const distance = Math.hypot(px - along * dx, py - along * dy);
      const value = 255 * (radius + 0.5 - distance);
      if (value > ink[y * SIDE + x]) ink[y * SIDE + x] = value;
    }
  }
}

/**
 * Show the paper on a canvas.
 * @param {HTMLCanvasElement} canvas @param {Item[]} items @param {string} colour  of the ink
 */
export function paint(canvas, items, colour) {
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const item of items) {
    if ("picture" in item) drawInk(canvas, item.picture, SIDE, colour);
  }
  context.setTransform(canvas.width / SIDE, 0, 0, canvas.height / SIDE, 0, 0);
  context.lineWidth = PEN;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = colour;
  for (const item of items) {
    if (!("stroke" in item)) continue;
    context.beginPath();
    trace(context, item.stroke);
    context.stroke();
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
}

/**
 * A stroke as a smooth curve: from the middle of each piece to the middle of the next, bent by the point between.
 * @param {CanvasRenderingContext2D} context @param {Point[]} stroke
 */
function trace(context, stroke) {
  context.moveTo(...stroke[0]);
  stroke.forEach(([x, y], i) => {
    const [nextX, nextY] = stroke[i + 1] ?? [x, y];
    context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
  });
  context.lineTo(...stroke[stroke.length - 1]);
}

/**
 * Show a square of ink on the whole of a canvas, in one colour, as opaque as there is ink.
 * @param {HTMLCanvasElement} canvas @param {ArrayLike<number>} ink @param {number} side  of the square
 * @param {string} colour
 */
export function drawInk(canvas, ink, side, colour) {
  const small = Object.assign(document.createElement("canvas"), { width: side, height: side });
  const pen = /** @type {CanvasRenderingContext2D} */ (small.getContext("2d"));
  const pixels = pen.createImageData(side, side);
  for (let i = 0; i < ink.length; i++) pixels.data[4 * i + 3] = ink[i];
  pen.putImageData(pixels, 0, 0);
  pen.globalCompositeOperation = "source-in";
  pen.fillStyle = colour;
  pen.fillRect(0, 0, side, side);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.imageSmoothingEnabled = side > 28;
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
}
