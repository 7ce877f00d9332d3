import "./style/base.css";
import "./style/login.css";

document.getElementById("wrong")!.hidden = location.search !== "?wrong";
