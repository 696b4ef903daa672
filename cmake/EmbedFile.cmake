# embed_file(TARGET FILE SYMBOL): makes a text file a part of TARGET.
#
# A source of TARGET includes "SYMBOL.inc" where it wants the text: that is one expression of type
# std::string_view.
function(embed_file target file symbol)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/${file})
  set(generated ${CMAKE_CURRENT_BINARY_DIR}/embedded/${symbol}.inc)
  set(script ${CMAKE_SOURCE_DIR}/cmake/embed_file.cmake)
  add_custom_command(
    OUTPUT ${generated}
    COMMAND ${CMAKE_COMMAND} -DINPUT=${source} -DOUTPUT=${generated} -P ${script}
    DEPENDS ${source} ${script}
    VERBATIM)
  target_sources(${target} PRIVATE ${generated})
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/embedded)
endfunction()
