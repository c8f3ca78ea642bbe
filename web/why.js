// @ts-check
// Why this digit and not the runner-up: occlusion, as in the chapter about what is inside a net.

/**
 * How far the log odds of `digit` against `other` fall, in nats, where a patch of 5 × 5 paper covers the image. A
 * patch without ink under it changes nothing, and is not computed. The work comes in slices: the page stays
 * awake. Each `next()` computes one patch and gives the map so far.
 * @param {import("./net.js").Net} net @param {Uint8Array} image  28 × 28 @param {number} digit @param {number} other
 * @returns {Generator<Float32Array>}
 */
export function* occlusion(net, image, digit, other) {
  const odds = (/** @type {Uint8Array} */ copy) => {
    const results = net.run(copy), n = results.length / 10;
    const mean = (/** @type {number} */ which) =>
      results.reduce((sum, p, i) => sum + (i % 10 === which ? p / n : 0), 0);
    return Math.log(Math.max(mean(digit), 1e-30)) - Math.log(Math.max(mean(other), 1e-30));
  };
  const whole = odds(image), map = new Float32Array(784);
  for (let centre = 0; centre < 784; centre++) {
    const copy = image.slice(), top = Math.floor(centre / 28) - 2, left = (centre % 28) - 2;
    let covered = 0;
    for (let y = Math.max(0, top); y < Math.min(28, top + 5); y++) {
      for (let x = Math.max(0, left); x < Math.min(28, left + 5); x++) {
        covered += copy[28 * y + x];
        copy[28 * y + x] = 0;
      }
    }
    if (!covered) continue;
    map[centre] = whole - odds(copy);
    yield map;
  }
}
