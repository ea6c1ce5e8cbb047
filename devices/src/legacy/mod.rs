//! Legacy PC devices: UARTs, CMOS RTC, PS/2, PM and reset registers, debug port, pvpanic.
