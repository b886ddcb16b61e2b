"""The machine as a tree, and where ranks go on it. No torch, no store, no clock.

From the ground up; a module imports only from those above it in this list:

- ``model``: nodes, slots, distances; ``mesh``: the parallel dimensions
- ``explain``: one sentence for each choice; ``spares``: how many are kept, and where
- ``layout``: the order of seating; ``locality``: edges that leave a level; ``orders``: what others would do
- ``tree``, ``shares``, ``wholenodes``, ``seating``, ``account``: the steps of ``placement``
- ``placement``: ranks to slots
- ``peers``: whom a rank is drawn to; ``sparenodes``, ``assignment``: the steps of ``replacement``
- ``replacement``: spares for failed slots; ``regroup``: a whole group elsewhere; ``covering``, ``shrinking``: fewer
  replicas; ``growing``: more of them; ``survival``: what may fail
- ``description``: how a machine is described; ``yamltree``, ``nodelist``, ``fileformat``, ``files``: reading it from
  YAML; ``synthetic``: making one up
- ``picture``, ``planpicture``: drawings for the terminal (rich, imported when something is drawn); ``planned``: what a
  plan comes to; ``svg``: its picture in a file
- ``discover``: what the node itself can tell
"""
