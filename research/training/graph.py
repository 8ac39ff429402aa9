"""Prepares the graph of one training step for TensorBoard."""

from __future__ import annotations

import collections
import re

import tensorflow as tf


def with_names_of_the_code(graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """Renames the nodes of a step's graph, so that layers have the names that the code gives them.

    Args:
        graph: a ``GraphDef``.

    Returns:
        A ``GraphDef`` without its library of functions. The step's inputs are below
        ``variables/``; operations outside of any layer or named scope are below ``other/``.
    """
    names = {node.name: node.name for node in graph.node}
    # Keras adds a number to a layer's scope when the layer is called a second time.
    scopes = {name.removeprefix("gradient_tape/").partition("/")[0] for name in names}
    bases = {scope: re.sub(r"_\d+$", "", scope) for scope in scopes}
    times = collections.Counter(bases.values())
    for old in names:
        first, *rest = old.removeprefix("gradient_tape/").split("/")
        if rest and times[bases[first]] == 1 and not first.startswith("replica_"):
            names[old] = old.replace(first, bases[first], 1)
    operations = set(names.values())
    for node in graph.node:
        if node.op == "Placeholder":
            names[node.name] = f"variables/{node.name}"
        elif names[node.name].partition("/")[0] in operations:
            # The first part names an operation, not a scope, though constants may be below it.
            names[node.name] = f"other/{names[node.name]}"

    drawn = tf.compat.v1.GraphDef(versions=graph.versions)
    for node in graph.node:
        copy = drawn.node.add()
        copy.CopyFrom(node)
        copy.name = names[node.name]
        copy.input[:] = [re.sub(r"[^^:]+", lambda m: names.get(m[0], m[0]), i) for i in node.input]
    return drawn
