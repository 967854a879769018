"""From a log density in PyTorch to machine code: record, lower, emit, build."""
