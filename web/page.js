// @ts-check
// The page: hands what is drawn to the net, and shows what the net predicts.

import { Paper, SIDE, drawInk, inkOf, paint } from "./draw.js";
import { form } from "./form.js";
import { Net, predict } from "./net.js";
import { readPicture } from "./picture.js";
import { SAMPLES } from "./samples.js";
import { occlusion } from "./why.js";

/** @typedef {{name: string, about: string, threshold: number, tta: number, onnx: string}} Model */

/** @param {string} id @returns {any}  an element of the page */
const the = (id) => document.getElementById(id);
/** A probability in words that are true: no digit is certain. @param {number} p */
const percent = (p) => (p > 0.9995 ? "> 99.9 %" : p < 0.0005 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`);
const colour = (/** @type {string} */ name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);

/** @type {Model[]} */
const models = JSON.parse(the("models").textContent);
/** @type {Map<Model, Net>} */
const nets = new Map();
const paper = new Paper();
let model = models[0];
let pen = { x: SIDE / 2, y: SIDE / 2, down: false, shown: false }; // the keyboard's pen
/** @type {Uint8Array | null} */
let image = null;
/** @type {number[]} */
let probabilities = [];

/** The net of the chosen model, unpacked at its first use. */
function net() {
  const known = nets.get(model) ?? new Net(Uint8Array.from(atob(model.onnx), (letter) => letter.charCodeAt(0)));
  nets.set(model, known);
  return known;
}

/** What the net predicts for what lies on the paper: MNIST's form of it and ten probabilities; none for blank paper. */
function read() {
  image = form(inkOf(paper.items), SIDE, SIDE);
  probabilities = image ? predict(net(), image, model.tta) : [];
}

// Showing

let waiting = 0; // for the next frame: however fast the pen, one prediction a frame
let pause = 0; // until the pen rests: then the prediction is spoken, and explained

function changed() {
  waiting ||= requestAnimationFrame(() => {
    waiting = 0;
    read();
    show();
  });
  clearTimeout(pause);
  pause = setTimeout(() => {
    speak();
    explain();
  }, 600);
}

function show() {
  paint(the("paper"), paper.items, colour("ink"));
  if (pen.shown) showPen();
  the("hint").hidden = paper.items.length > 0;
  the("undo").disabled = !paper.past.length;
  the("clear").disabled = !paper.items.length;
  wipe(the("form"));
  if (image) drawInk(the("form"), image, 28, colour("ink"));
  const [best, second] = ranked(), doubtful = image && probabilities[best] < model.threshold;
  the("digit").textContent = image ? String(best) : "";
  the("digit").classList.toggle("doubtful", Boolean(doubtful));
  the("verdict").textContent = !image ? "Nothing to read yet"
    : doubtful ? "Not a digit, perhaps"
    : percent(probabilities[best]);
  the("second").textContent = !image ? "Draw a digit, or try a sample."
    : doubtful ? `${best}: ${percent(probabilities[best])}, ${second}: ${percent(probabilities[second])}`
    : `or ${second}: ${percent(probabilities[second])}`;
  [...the("bars").children].forEach((row, digit) => {
    const probability = probabilities[digit] ?? 0;
    row.classList.toggle("best", Boolean(image) && digit === best);
    row.querySelector(".bar").style.transform = `scaleX(${probability})`;
    row.querySelector(".share").textContent = image ? percent(probability) : "–";
  });
}

/** Digits from the most to the least probable. */
function ranked() {
  return [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
}

/** @param {HTMLCanvasElement} canvas */
function wipe(canvas) {
  canvas.getContext("2d")?.clearRect(0, 0, canvas.width, canvas.height);
}

function speak() {
  const [best, second] = ranked();
  const doubt = probabilities[best] < model.threshold ? "Not a digit, perhaps. " : "";
  the("spoken").textContent = !image ? "The paper is blank."
    : `${doubt}${best}: ${percent(probabilities[best])}; ${second}: ${percent(probabilities[second])}.`;
  the("form").setAttribute("aria-label", image ? "The drawing as the net sees it" : "No digit yet");
}

// Why

let turn = 0; // a new drawing ends the explanation of the last one

function explain() {
  const mine = ++turn, canvas = the("map");
  wipe(canvas);
  the("reading").textContent = image ? "" : "Draw a digit first.";
  if (the("reasons").hidden || !image) return;
  const drawn = image, [best, second] = ranked(), maps = occlusion(net(), drawn, best, second);
  the("reading").append(
    element("b", "", "Blue"), ` places speak for ${best}: where paper covers them, its odds against ${second} fall. `,
    element("i", "", "Orange"), ` places speak for ${second}.`,
  );
  canvas.setAttribute("aria-label", `The places that speak for ${best}, and those that speak for ${second}`);
  /** @type {Float32Array | undefined} */ let map;
  const work = () => {
    if (mine !== turn) return;
    const end = performance.now() + 12;
    let done = false;
    while (!done && performance.now() < end) {
      const next = maps.next();
      done = Boolean(next.done);
      map = next.value ?? map;
    }
    if (map) showMap(canvas, map, drawn);
    if (!done) setTimeout(work);
  };
  work();
}

/**
 * Places that speak for the answer and for the runner-up, each in its colour, with the drawing's outline.
 * @param {HTMLCanvasElement} canvas @param {Float32Array} map @param {Uint8Array} drawn
 */
function showMap(canvas, map, drawn) {
  const most = map.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
  wipe(canvas);
  drawInk(canvas, map.map((value) => (235 * Math.max(0, value)) / most), 28, colour("accent"));
  drawInk(canvas, map.map((value) => (235 * Math.max(0, -value)) / most), 28, colour("rival"));
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d")), size = canvas.width / 28;
  const inked = (/** @type {number} */ y, /** @type {number} */ x) => x >= 0 && x < 28 && drawn[28 * y + x] > 127;
  context.beginPath();
  for (let y = 0; y <= 28; y++) {
    for (let x = 0; x <= 28; x++) {
      if (inked(y, x) !== inked(y - 1, x)) context.rect(x * size, y * size - 1, size, 2);
      if (inked(y, x) !== inked(y, x - 1)) context.rect(x * size - 1, y * size, 2, size);
    }
  }
  context.fillStyle = colour("ink");
  context.fill();
}

// Changing the paper

/** @param {() => void} change */
function act(change) {
  change();
  note("");
  changed();
}

const undo = () => act(() => (pen.down = false, paper.undo()));
const clear = () => act(() => (pen.down = false, paper.clear()));
const note = (/** @type {string} */ text) => (the("note").textContent = text);

/** @param {Blob} file */
async function lay(file) {
  note("");
  try {
    const { ink, animated } = await readPicture(file);
    paper.change([{ picture: ink }]);
    if (animated) note("This picture moves; its first frame was read.");
  } catch (error) {
    note(error instanceof Error ? error.message : String(error));
  }
  changed();
}

/** Where an event happened on the paper. @param {PointerEvent} event @returns {import("./draw.js").Point} */
function place(event) {
  const { left, top, width, height } = the("paper").getBoundingClientRect();
  return [((event.clientX - left) * SIDE) / width, ((event.clientY - top) * SIDE) / height];
}

function listenToPointers() {
  const canvas = the("paper");
  /** @type {number | null} */ let drawing = null; // the pointer that draws: a second finger does not
  canvas.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
    if (drawing !== null || event.button !== 0) return;
    drawing = event.pointerId;
    canvas.setPointerCapture(drawing);
    pen = { ...pen, down: false, shown: false };
    act(() => paper.add({ stroke: [place(event)] }));
  });
  canvas.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => {
    if (event.pointerId !== drawing) return;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const part of passed.length ? passed : [event]) paper.extend(place(part));
    changed();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (/** @type {PointerEvent} */ event) => {
      if (event.pointerId === drawing) drawing = null;
    });
  }
}

const ARROWS = new Map([["ArrowLeft", [-1, 0]], ["ArrowRight", [1, 0]], ["ArrowUp", [0, -1]], ["ArrowDown", [0, 1]]]);

function listenToKeys() {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
    else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && !event.shiftKey) undo();
    else return;
    event.preventDefault();
  });
  the("paper").addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    const arrow = ARROWS.get(event.key);
    if (event.key !== " " && !arrow) return;
    event.preventDefault();
    if (arrow) movePen(arrow[0], arrow[1], event.shiftKey ? 28 : 7);
    else lowerPen(!pen.down);
    pen.shown = true;
    changed();
  });
  the("paper").addEventListener("blur", () => {
    pen = { ...pen, down: false, shown: false };
    changed();
  });
}

/** @param {boolean} down */
function lowerPen(down) {
  pen.down = down;
  if (down) paper.add({ stroke: [[pen.x, pen.y]] });
  note(down ? "The pen is down." : "The pen is up.");
}

/** @param {number} across @param {number} down @param {number} step */
function movePen(across, down, step) {
  pen.x = Math.min(SIDE, Math.max(0, pen.x + across * step));
  pen.y = Math.min(SIDE, Math.max(0, pen.y + down * step));
  if (pen.down) paper.extend([pen.x, pen.y]);
}

/** A ring where the keyboard's pen is, filled while it is down. */
function showPen() {
  const canvas = the("paper"), context = canvas.getContext("2d"), scale = canvas.width / SIDE;
  context.beginPath();
  context.arc(pen.x * scale, pen.y * scale, 7 * scale, 0, 7);
  context.lineWidth = 2.5 * scale;
  context.strokeStyle = context.fillStyle = colour("accent");
  if (pen.down) context.fill();
  context.stroke();
}

function listenToPictures() {
  const first = (/** @type {DataTransfer | null} */ data) => data?.files[0];
  document.addEventListener("paste", (event) => {
    const file = first(event.clipboardData);
    if (file) lay(file);
    else note("The clipboard holds no picture.");
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dropping");
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping"); // it has left the page
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    const file = first(event.dataTransfer);
    if (file) lay(file);
    else note("What was dropped is no picture file.");
  });
  the("choose").addEventListener("click", () => the("file").click());
  the("file").addEventListener("change", () => {
    if (the("file").files[0]) lay(the("file").files[0]);
    the("file").value = "";
  });
}

// Setting the page up

/** @param {string} tag @param {string} name  of its class @param {string} text */
function element(tag, name, text = "") {
  return Object.assign(document.createElement(tag), { className: name, textContent: text });
}

function buildBars() {
  for (let digit = 0; digit < 10; digit++) {
    const row = document.createElement("li"), track = element("span", "track");
    track.append(element("div", "bar"));
    row.append(element("span", "name", String(digit)), track, element("span", "share"));
    the("bars").append(row);
  }
}

function buildSamples() {
  for (const [name, strokes] of SAMPLES) {
    const button = Object.assign(element("button", ""), { type: "button", title: name });
    button.setAttribute("aria-label", `Sample: ${name}`);
    button.append(Object.assign(element("canvas", ""), { width: 96, height: 96 }));
    const items = () => strokes.map((stroke) => ({ stroke: stroke.slice() }));
    button.addEventListener("click", () => act(() => paper.change(items())));
    the("samples").append(button);
  }
}

function paintSamples() {
  [...the("samples").children].forEach((button, i) => {
    paint(button.firstChild, SAMPLES[i][1].map((stroke) => ({ stroke })), colour("ink"));
  });
}

function buildNets() {
  models.forEach((each, i) => {
    const label = document.createElement("label");
    const choice = Object.assign(document.createElement("input"), { type: "radio", name: "net", checked: i === 0 });
    choice.addEventListener("change", () => act(() => (model = each)));
    label.append(choice, each.name, element("small", "", each.about));
    the("nets").append(label);
  });
}

function begin() {
  buildBars();
  buildSamples();
  buildNets();
  listenToPointers();
  listenToKeys();
  listenToPictures();
  the("undo").addEventListener("click", undo);
  the("clear").addEventListener("click", clear);
  the("why").addEventListener("click", () => {
    the("reasons").hidden = !the("reasons").hidden;
    the("why").setAttribute("aria-expanded", String(!the("reasons").hidden));
    explain();
  });
  const redraw = () => {
    paintSamples();
    show();
    explain();
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  redraw();
}

begin();

/** For tests, and for the curious in the browser's console: `digitrec.predict` takes 28 × 28 numbers, 0 to 255. */
const predicted = (/** @type {ArrayLike<number>} */ pixels) => predict(net(), pixels, model.tta);
Object.assign(globalThis, { digitrec: { form, inkOf, net, occlusion, paper, predict: predicted } });
