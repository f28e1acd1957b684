"""Plans for hardware that is not attached: topologies, collectives of the compiled program, roofline, memory, text of a plan."""
