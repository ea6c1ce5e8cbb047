#!/bin/sh
# init of the outer machine: loads KVM, mounts the tools, runs the job, powers off.
/bin/busybox --install -s /bin
export PATH=/bin:/tools/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t debugfs debugfs /sys/kernel/debug
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/net /tools /dev/pts
mount -t devpts devpts /dev/pts
while read -r module; do insmod "/modules/$module" || echo "LAB cannot load $module"; done < /modules/order
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
for try in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] && break; sleep 0.2; done
mount -t ext4 /dev/vda /tools
ip link set lo up
stty -F /dev/ttyS1 raw -echo
ls /dev/kvm
echo 1 > /proc/sys/vm/overcommit_memory
echo "LAB-OUTER-UP $(cut -d' ' -f1 /proc/uptime)"
cd /tmp || exit
lab-runner /job.json /dev/ttyS1
# The runner's report must be out of the port before the power goes.
stty -F /dev/ttyS1 sane
sleep 0.2
poweroff -f
