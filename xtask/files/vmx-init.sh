#!/bin/sh
# init of the outer machine with VMX: as outer-init.sh, with its two disks on ATA.
/bin/busybox --install -s /bin
export PATH=/bin:/lab/bin:/tools/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/net /tools /lab /dev/pts
mount -t devpts devpts /dev/pts
# A terminal starts at 9600 baud, and this machine takes that at its word.
stty -F /dev/ttyS0 115200
stty -F /dev/ttyS1 115200 raw -echo
while read -r module; do insmod "/modules/$module" || echo "LAB cannot load $module"; done < /modules/order
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do [ -b /dev/sda ] && [ -b /dev/sdb ] && break; sleep 0.2; done
mount -t ext4 -o ro,noload /dev/sda /tools
mount -t ext4 /dev/sdb /lab
# What guests name at the root of the other outer machine.
for file in /lab/initrd-*; do [ -e "$file" ] && ln -s "$file" /; done
ip link set lo up
ls /dev/kvm
for option in ept unrestricted_guest; do echo "$option $(cat /sys/module/kvm_intel/parameters/$option)"; done
echo 1 > /proc/sys/vm/overcommit_memory
echo "LAB-OUTER-UP $(cut -d' ' -f1 /proc/uptime)"
cd /tmp || exit
lab-runner /lab/job.json /dev/ttyS1
stty -F /dev/ttyS1 sane
sleep 0.2
poweroff -f
