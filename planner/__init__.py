"""Decides how a model is cut, and builds the shards.

    imported = planner.importers.import_model("torchvision:resnet18", ImportOptions(...))
    model    = planner.canonical.canonicalise(imported)     one ONNX form for everything
    graph    = planner.graph.segment_graph(model)           cut points, and the segments between
    plan     = planner.build.build_plan(imported, graph, PlanRequest(...))

`build_plan` measures segments (`planner.profiler`), balances and measures stages
(`planner.refine`), writes the shards and verifies them (`planner.verify`).

`planner.whole` is the unsplit model in one session, `planner.compare` the comparison of two
answers, `planner.partition` and `planner.cost_model` the pure decisions: `partition` asks
`planner.exact` where it can, `planner.bounded` where it must, and `planner.infeasible` why not.
Importing this package loads nothing: torch is needed by the importers alone, onnx by what touches a
graph.
"""
