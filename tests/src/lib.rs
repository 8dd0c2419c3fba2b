//! Service, browser and parity tests
