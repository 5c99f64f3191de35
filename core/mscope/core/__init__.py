"""What every part agrees on: configuration, geometry, graph contract, bundle, exit decision, cost."""
