"""Decides how a model is cut, and builds the shards.

    imported = planner.importers.import_model("torchvision:resnet18", ImportOptions(...))
    model    = planner.canonical.canonicalise(imported)     one ONNX form for everything
    graph    = planner.graph.segment_graph(model)           cut points, and the segments between
    plan     = planner.build.build_plan(imported, graph, PlanRequest(...))

`build_plan` measures segments (`planner.profiler`), decides and measures what it chose
(`planner.choose`, `planner.decide`), writes the shards and verifies them (`planner.verify`).

`planner.whole` is the unsplit model in one session, `planner.compare` the comparison of two
answers. `planner.problem` is what is to be decided, as numbers; `planner.cost_model` and
`planner.partition` (with `planner.solver` behind it), `planner.simulation`, `planner.verdict` and
`planner.what_if` are pure. What is known of devices comes from `planner.devices`. Importing this
package loads nothing: torch is needed by the importers alone, onnx by what touches a graph.
"""
