// @ts-check
// In words that the oldest browsers know: show a sentence where the page cannot run.
(function () {
  function sorry() {
    var sentence = document.getElementById("sorry");
    if (sentence) sentence.removeAttribute("hidden");
  }
  window.addEventListener("error", sorry);
  if (!("noModule" in document.createElement("script")) || !window.PointerEvent) sorry();
})();
