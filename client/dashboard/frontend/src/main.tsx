import "uplot/dist/uPlot.min.css";
import "./style/base.css";
import "./style/flow.css";
import "./style/panels.css";
import "./style/table.css";

import { render } from "preact";

import { App } from "./app";
import { listen } from "./stream";

const root = document.getElementById("app")!;
listen((state) => render(<App state={state} />, root));
render(<App state={undefined} />, root);
