# The command of EmbedFile.cmake: INPUT, a text file, to OUTPUT, C++.
file(READ ${INPUT} hex HEX)
string(LENGTH "${hex}" digits)
math(EXPR bytes "${digits} / 2")
string(REGEX REPLACE "([0-9a-f][0-9a-f])" "\\\\x\\1" escaped "${hex}")
string(LENGTH "${escaped}" length)
set(lines "")
set(at 0)
while(at LESS length)
  string(SUBSTRING "${escaped}" ${at} 256 line)  # 64 bytes; adjacent literals are one string
  string(APPEND lines "\"${line}\"\n")
  math(EXPR at "${at} + 256")
endwhile()
file(WRITE ${OUTPUT} "std::string_view(\n${lines}, ${bytes})\n")
