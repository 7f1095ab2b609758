"""The work behind each step of the flows. One file per kind of work; owns files, tracker and checkpoints."""

# Metaflow ships only the flow's own folder unless an imported package asks to be included. This line asks,
# for this package and (as a module attribute of a package imported at the flow's top level) for the core.
METAFLOW_PACKAGE_POLICY = "include"
