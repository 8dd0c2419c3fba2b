//! LLaVA-NeXT, the TopK SAE and interventions in burn
