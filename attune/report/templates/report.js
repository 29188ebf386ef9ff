"use strict";
{
  const specs = JSON.parse(document.getElementById("specs").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const draw = () => {
    const look = {background: "transparent", font: "system-ui, sans-serif", view: {stroke: null},
      axis: {gridOpacity: 0.3, titleFontWeight: "normal"}};
    for (const [id, spec] of Object.entries(specs)) {
      // ast: expressions are interpreted, since the page's policy allows no evaluation.
      vegaEmbed(document.getElementById(id), spec,
        {actions: false, ast: true, renderer: "svg", theme: dark.matches ? "dark" : undefined, config: look,
         loader: {target: "_blank"}});
    }
  };
  dark.addEventListener("change", draw);
  draw();
}
