//! PCI: configuration space, BARs, MSI-X, host bridges.
