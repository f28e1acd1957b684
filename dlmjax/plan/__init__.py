"""Plans for hardware that need not be here: topologies, collectives of the compiled program, roofline, memory, text of a plan."""
