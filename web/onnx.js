// @ts-check
// Read an ONNX file: a graph of operations and their weights, written down as protocol buffers.

/** @typedef {{shape: number[], data: Float32Array}} Tensor */
/** @typedef {{op: string, inputs: string[], output: string, settings: Record<string, any>}} Step */
/** @typedef {{steps: Step[], weights: Map<string, Tensor>, output: string}} Graph */

/** The numbers that ONNX gives to the fields of its messages (onnx.proto3), those that our files use. */
const GRAPH = 7, NODES = 1, WEIGHTS = 5, OUTPUT = 12;
const [INPUTS, OUTPUTS, OP, SETTINGS] = [1, 2, 4, 5];
const [SETTING_NAME, FLOAT, INT, STRING, INTS] = [1, 2, 3, 4, 8];
const [DIMENSIONS, KIND, NAME, RAW] = [1, 2, 8, 9];

/** @param {Uint8Array} bytes  of an ONNX file @returns {Graph} */
export function readOnnx(bytes) {
  const graph = message(message(bytes).get(GRAPH)[0]);
  return {
    steps: all(graph, NODES).map(step),
    weights: new Map(all(graph, WEIGHTS).map(tensor)),
    output: text(message(graph.get(OUTPUT)[0]).get(1)[0]),
  };
}

/**
 * The fields of a message by their numbers, in order: whole numbers, or bytes that are text, numbers or messages again.
 * @param {Uint8Array} bytes @returns {Map<number, any>}
 */
function message(bytes) {
  const fields = new Map();
  for (let at = 0; at < bytes.length; ) {
    const [key, start] = varint(bytes, at);
    const kind = key % 8, field = Math.floor(key / 8);
    let [value, end] = kind === 5 ? [4, start] : varint(bytes, start);
    if (kind === 2 || kind === 5) {
      if (end + value > bytes.length) throw new Error("An ONNX file that ends too early");
      [value, end] = [bytes.subarray(end, end + value), end + value];
    } else if (kind !== 0) throw new Error("This is no ONNX file");
    fields.set(field, [...(fields.get(field) ?? []), value]);
    at = end;
  }
  return fields;
}

/**
 * A whole number in bytes of 7 bits each, the lowest first, and where it ends. Negative ones take all 64 bits.
 * @param {Uint8Array} bytes @param {number} at @returns {[any, number]}
 */
function varint(bytes, at) {
  let value = 0n, shift = 0n, byte;
  do {
    byte = bytes[at++];
    value |= BigInt(byte & 127) << shift;
    shift += 7n;
  } while (byte > 127);
  return [Number(BigInt.asIntN(64, value)), at];
}

/** @param {Map<number, any>} fields @param {number} field @returns {Map<number, any>[]} */
const all = (fields, field) => (fields.get(field) ?? []).map(message);
/** @param {Uint8Array} bytes */
const text = (bytes) => new TextDecoder().decode(bytes);
/** Floats of 32 bits, wherever they lie. @param {Uint8Array} bytes */
const floats = (bytes) => new Float32Array(bytes.slice().buffer);

/** Whole numbers, one by one or packed into bytes. @param {any[]} values @returns {number[]} */
function integers(values) {
  return values.flatMap((value) => {
    if (typeof value === "number") return value;
    const unpacked = [];
    for (let at = 0; at < value.length; ) {
      const [number, end] = varint(value, at);
      unpacked.push(number);
      at = end;
    }
    return unpacked;
  });
}

/** @param {Map<number, any>} node @returns {Step} */
function step(node) {
  const settings = all(node, SETTINGS).map((setting) => {
    const value = setting.has(FLOAT) ? floats(setting.get(FLOAT)[0])[0]
      : setting.has(STRING) ? text(setting.get(STRING)[0])
      : setting.has(INTS) ? integers(setting.get(INTS))
      : setting.get(INT)?.[0];
    return [text(setting.get(SETTING_NAME)[0]), value];
  });
  const [op, output] = [OP, OUTPUTS].map((field) => text(node.get(field)[0]));
  return { op, inputs: (node.get(INPUTS) ?? []).map(text), output, settings: Object.fromEntries(settings) };
}

/** @param {Map<number, any>} fields @returns {[string, Tensor]} */
function tensor(fields) {
  const kind = fields.get(KIND)[0], raw = /** @type {Uint8Array} */ (fields.get(RAW)?.[0] ?? new Uint8Array());
  const data = kind === 1 ? floats(raw)
    : kind === 10 ? halves(raw)
    : kind === 7 ? Float32Array.from(new BigInt64Array(raw.slice().buffer), Number)
    : null;
  if (!data) throw new Error(`Weights of ONNX's type ${kind} cannot be read here`);
  return [text(fields.get(NAME)[0]), { shape: integers(fields.get(DIMENSIONS) ?? []), data }];
}

/** Numbers in half precision: a sign, 5 bits of exponent, 10 of fraction. @param {Uint8Array} bytes */
function halves(bytes) {
  return Float32Array.from(new Uint16Array(bytes.slice().buffer), (half) => {
    const sign = half >> 15 ? -1 : 1, exponent = (half >> 10) & 31, fraction = (half & 1023) / 1024;
    return sign * (exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14);
  });
}
